// SPDX-License-Identifier: BSD-3-Clause
/*
 * scm/fifo/udp/ipv4/lo: POLLERR with an empty queue
 *
 * Seen on Linux 6.12.117 with the series "net: return completions"; it is
 * about N01, Z30 of zcvet's checklist.
 *
 *     gcc -static -o reproducer THIS-FILE && ./reproducer
 *
 * It exits with 1 if the kernel has the fault, with 0 if it has not, and
 * with 125 if that could not be found out, as git bisect run expects. The
 * fault is that every call gives what was recorded; on a kernel without it
 * one gives something else. It needs root.
 *
 * zcvet made it from the system calls of that case, which runs with
 *     zcvet run --kernel 6.12 --series mine --suite scm/fifo/udp/ipv4/lo
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <linux/errqueue.h>

#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 0x3c
#endif
#define MOST_CONTROL 512

static char room[2048];
static char data[3];

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

static char *map(size_t length, int protection, int flags)
{
	char *place = mmap(NULL, length, protection, flags, -1, 0);

	if (place == MAP_FAILED)
		must("mmap", -1);
	return place;
}

static void see_sum(const char *what, const unsigned char *data, size_t length)
{
	unsigned int sum = 2166136261u;
	size_t i;

	for (i = 0; i < length; i++)
		sum = (sum ^ data[i]) * 16777619u;
	if (length > 0)
		see("%s %08x", what, sum);
}

/* Shows the beginning of what was received. */
static void see_data(const void *data, long length)
{
	see_sum(", data", data, length < 0 ? 0 : length > 64 ? 64 : length);
}

/* Receives once; what was there when this was recorded may need a moment. */
static void receive_once(int fd, size_t length, int flags, int wait)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };

	if (wait)
		poll(&polled, 1, 1000);
	see_data(room, result(recv(fd, room, length, flags)));
}

static void poll_one(int fd, short events, int milliseconds)
{
	struct pollfd polled = { .fd = fd, .events = events };

	if (result(poll(&polled, 1, milliseconds)) >= 0)
		see(", events %#x", polled.revents);
}

static void watch(int epoll, int operation, int fd, unsigned int events)
{
	struct epoll_event event = { .events = events };

	result(epoll_ctl(epoll, operation, fd, &event));
}

static void wait_one(int epoll, int milliseconds)
{
	struct epoll_event event;

	if (result(epoll_wait(epoll, &event, 1, milliseconds)) > 0)
		see(", events %#x", event.events);
}

/* Sends from one buffer. */
static void send_data(int fd, void *data, size_t length, int flags)
{
	struct iovec vector = { data, length };
	struct msghdr msg = { .msg_iov = &vector, .msg_iovlen = 1 };

	result(sendmsg(fd, &msg, flags));
}

/* Shows the control messages of what was received. */
static void see_control(struct msghdr *msg)
{
	struct cmsghdr *cmsg;

	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		struct sock_extended_err error;

		see("; %d/%d", cmsg->cmsg_level, cmsg->cmsg_type);
		if (!((cmsg->cmsg_level == SOL_IP && cmsg->cmsg_type == IP_RECVERR) ||
		      (cmsg->cmsg_level == SOL_IPV6 && cmsg->cmsg_type == IPV6_RECVERR) ||
		      (cmsg->cmsg_level == 287 && cmsg->cmsg_type == 1)))
			continue;
		if (cmsg->cmsg_len < CMSG_LEN(sizeof(error)))
			continue;
		memcpy(&error, CMSG_DATA(cmsg), sizeof(error));
		see(" errno %u origin %u code %u %u-%u", error.ee_errno, error.ee_origin,
		    error.ee_code, error.ee_info, error.ee_data);
	}
}

/* Reads a message; what was there when this was recorded may need a moment. */
static long read_message(int fd, size_t length, size_t control, int flags, int wait)
{
	static char controls[MOST_CONTROL];
	struct iovec vector = { room, length };
	struct msghdr msg = {
		.msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = controls, .msg_controllen = control,
	};
	struct pollfd polled = { .fd = fd, .events = flags & MSG_ERRQUEUE ? 0 : POLLIN };
	long count;

	if (wait)
		poll(&polled, 1, 1000);
	count = result(recvmsg(fd, &msg, flags));
	if (count < 0)
		return count;
	see_data(room, count);
	see(", flags %#x", msg.msg_flags);
	see_control(&msg);
	return count;
}

static void write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	if (!file || fputs(text, file) < 0 || fclose(file))
		must(path, -1);
}

int main(void)
{
	struct sockaddr_storage to;
	int rx, tx, port, epoll;

	write_file("/proc/sys/net/core/optmem_max", "20480");
	rx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	limit_waits(rx);
	must("bind", bind(rx, (struct sockaddr *)&to, address(&to, "127.0.0.1", 0)));
	tx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	set_option(tx, SOL_SOCKET, SO_ZEROCOPY, 1);
	port = port_of(rx);
	must("connect", connect(tx, (struct sockaddr *)&to, address(&to, "127.0.0.1", port)));
	map(4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
	epoll = must("epoll_create1", epoll_create1(0));
	watch(epoll, EPOLL_CTL_ADD, tx, EPOLLET);
	check("epoll_ctl", "0");
	memcpy(data, "abc", 3);
	send_data(tx, data, 3, MSG_ZEROCOPY);
	check("sendmsg", "3");
	receive_once(rx, 4, 0, 1);
	check("recvfrom", "3, data 1a47e90b");
	wait_one(epoll, 1000);
	check("epoll_wait", "1, events 0x8");
	read_message(tx, 2048, 512, MSG_ERRQUEUE, 1);
	check("recvmsg", "0, flags 0x2000; 0/11 errno 0 origin 5 code 1 0-0");
	poll_one(tx, POLLOUT, 0);
	check("poll", "1, events 0xc");
	write_file("/proc/sys/net/core/optmem_max", "131072\012");

	if (!differs) {
		puts("FAULT: the kernel answered as recorded: POLLERR with an empty queue");
		return 1;
	}
	puts("the fault does not show");
	return 0;
}
