// SPDX-License-Identifier: BSD-3-Clause
/*
 * scm/fifo/udp/ipv4/lo: the kernel wrote to a const msghdr
 *
 * Seen on Linux 6.12.117 with the series "net: return completions"; it is
 * about N01, Z30 of zcvet's checklist.
 *
 *     gcc -static -o reproducer THIS-FILE && ./reproducer
 *
 * It exits with 1 if the kernel has the fault, with 0 if it has not, and
 * with 125 if that could not be found out, as git bisect run expects. The
 * fault is that every call gives what was recorded; on a kernel without it
 * one gives something else.
 *
 * zcvet made it from the system calls of that case, which runs with
 *     zcvet run --kernel 6.12 --series mine --suite scm/fifo/udp/ipv4/lo
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 0x3c
#endif
static char data[1];
static struct iovec iov[1];

static char seen[4096];

static int differs;

/* Adds to what the call in hand gave. */
static void see(const char *format, ...)
{
	size_t used = strlen(seen);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(seen + used, sizeof(seen) - used, format, arguments);
	va_end(arguments);
}

/* Begins with what a call returned. */
static long result(long value)
{
	int error = errno;

	seen[0] = 0;
	if (value < 0)
		see("-1, errno %d", error);
	else
		see("%ld", value);
	return value;
}

/* Prints what a call gave, and what was recorded if that was something else. */
static void check(const char *call, const char *recorded)
{
	printf("%-20s %s\n", call, seen);
	if (strcmp(seen, recorded)) {
		printf("%20s %s\n", "recorded was:", recorded);
		differs = 1;
	}
}

/* For what stands before the fault and has nothing to do with it. */
static long must(const char *call, long value)
{
	if (value < 0) {
		fprintf(stderr, "%s: %s\n", call, strerror(errno));
		exit(125);
	}
	return value;
}

static void set_option(int fd, int level, int option, int value)
{
	must("setsockopt", setsockopt(fd, level, option, &value, sizeof(value)));
}

/* Lets no call wait for ever. */
static void limit_waits(int fd)
{
	struct timeval limit = { .tv_sec = 5 };

	must("SO_RCVTIMEO", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	must("SO_SNDTIMEO", setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));
}

static socklen_t address(struct sockaddr_storage *to, const char *host, int port)
{
	struct sockaddr_in6 *six = (void *)to;
	struct sockaddr_in *four = (void *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		return sizeof(*four);
	}
	inet_pton(AF_INET6, host, &six->sin6_addr);
	six->sin6_family = AF_INET6;
	six->sin6_port = htons(port);
	return sizeof(*six);
}

static int port_of(int fd)
{
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);

	must("getsockname", getsockname(fd, (struct sockaddr *)&name, &length));
	/* It is at the same place in both families. */
	return ntohs(((struct sockaddr_in *)&name)->sin_port);
}

int main(void)
{
	struct sockaddr_storage to;
	struct msghdr msg;
	int rx, tx, port;

	rx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	limit_waits(rx);
	must("bind", bind(rx, (struct sockaddr *)&to, address(&to, "127.0.0.1", 0)));
	tx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	set_option(tx, SOL_SOCKET, SO_ZEROCOPY, 1);
	port = port_of(rx);
	must("connect", connect(tx, (struct sockaddr *)&to, address(&to, "127.0.0.1", port)));
	memcpy(data, "x", 1);
	iov[0] = (struct iovec){ data, 1 };
	msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
	result(sendmsg(tx, &msg, 0));
	see("; msghdr flags %#x controllen %zu", msg.msg_flags, msg.msg_controllen);
	check("sendmsg", "1; msghdr flags 0x80 controllen 0");

	if (!differs) {
		puts("FAULT: the kernel answered as recorded: the kernel wrote to a const msghdr");
		return 1;
	}
	puts("the fault does not show");
	return 0;
}
