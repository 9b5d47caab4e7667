// SPDX-License-Identifier: BSD-3-Clause
/*
 * scm/fifo/udp/ipv4/lo: send: EFAULT
 *
 * Seen on Linux 6.12.117 with the series "net: return completions"; it is
 * about N01, Z30 of zcvet's checklist.
 *
 *     gcc -static -pthread -o reproducer THIS-FILE && ./reproducer
 *
 * It exits with 1 if the kernel has the fault, with 0 if it has not, and
 * with 125 if that could not be found out, as git bisect run expects. The
 * fault is that every call gives what was recorded; on a kernel without it
 * one gives something else.
 *
 * The case had 2 threads in the kernel at the same time, and so has the
 * program. The calls of several threads come in the order of the record
 * where they did not overlap; where one was under way when another thread
 * acted, that one waits until it begins, and every other time a moment
 * longer, for it to fall asleep. It depends on the moment what comes of it,
 * so everything is done 6 times.
 *
 * zcvet made it from the system calls of that case, which runs with
 *     zcvet run --kernel 6.12 --series mine --suite scm/fifo/udp/ipv4/lo
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 0x3c
#endif
#define POINTS 2

static __thread char data[200];
static int rx;
static int tx;
static int port;

static __thread char seen[4096];

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

/* Sends from one buffer. */
static long send_data(int fd, void *data, size_t length, int flags)
{
	struct iovec vector = { data, length };
	struct msghdr msg = { .msg_iov = &vector, .msg_iovlen = 1 };

	return result(sendmsg(fd, &msg, flags));
}

static void start(pthread_t *thread, void *(*run)(void *))
{
	errno = pthread_create(thread, NULL, run, NULL);
	must("pthread_create", errno ? -1 : 0);
}

static int reached[POINTS];

/* Tells other threads that this one has come so far. */
static void reach(int point)
{
	__atomic_store_n(&reached[point], 1, __ATOMIC_SEQ_CST);
}

/* Waits until another thread has come so far. */
static void wait_for(int point)
{
	while (!__atomic_load_n(&reached[point], __ATOMIC_SEQ_CST))
		usleep(100);
}

static int patient;

/* Does everything in a process of its own, of which nothing is left, and tells
   whether the fault showed. */
static int once(int round, int (*run)(void))
{
	int status;
	pid_t child;

	fflush(stdout);
	patient = round % 2 == 0;
	child = must("fork", fork());
	if (child == 0) {
		alarm(60);
		exit(run());
	}
	must("waitpid", waitpid(child, &status, 0));
	if ((WIFEXITED(status) && WEXITSTATUS(status) == 125) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM))
		exit(125);
	return WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static void *thread_1(void *unused)
{
	wait_for(1);
	memset(data, 0, 200);
	send_data(tx, data, 200, MSG_ZEROCOPY);
	check("sendmsg", "-1, errno 14");
	return unused;
}

static int scenario(void)
{
	pthread_t threads[1];
	struct sockaddr_storage to;

	rx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	limit_waits(rx);
	must("bind", bind(rx, (struct sockaddr *)&to, address(&to, "127.0.0.1", 0)));
	tx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	set_option(tx, SOL_SOCKET, SO_ZEROCOPY, 1);
	port = port_of(rx);
	must("connect", connect(tx, (struct sockaddr *)&to, address(&to, "127.0.0.1", port)));
	start(&threads[0], thread_1);
	memset(data, 0, 100);
	reach(1);
	send_data(tx, data, 100, MSG_ZEROCOPY);
	check("sendmsg", "100");
	pthread_join(threads[0], NULL);

	return !differs;
}

int main(void)
{
	int round, shown = 0;

	for (round = 0; round < 6; round++) {
		shown += once(round, scenario);
	}
	if (shown) {
		printf("the fault showed in %d of 6 rounds\n", shown);
		puts("FAULT: the kernel answered as recorded: send: EFAULT");
		return 1;
	}
	puts("the fault does not show in 6 rounds");
	return 0;
}
