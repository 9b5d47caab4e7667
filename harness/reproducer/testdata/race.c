// SPDX-License-Identifier: BSD-3-Clause
/*
 * scm/fifo/udp/ipv4/lo: BUG: kernel NULL pointer dereference in
 * sock_dequeue_err_skb
 *
 * Seen on Linux 6.12.117 with the series "net: return completions"; it is
 * about N01, Z30 of zcvet's checklist.
 *
 *     gcc -static -pthread -o reproducer THIS-FILE && ./reproducer
 *
 * It exits with 1 if the kernel has the fault, with 0 if it has not, and
 * with 125 if that could not be found out, as git bisect run expects. The
 * kernel has the fault as well if it kills the program or stops the machine.
 *
 * The case had 5 threads in the kernel at the same time, and so has the
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
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <linux/errqueue.h>
#include <unistd.h>

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 0x3c
#endif
#define MOST_CONTROL 512
#define POINTS 5

static __thread char room[2048];
static __thread char data[1];
static __thread char control[512] __attribute__((aligned(8)));
static __thread struct iovec iov[1];
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
	static __thread char controls[MOST_CONTROL];
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

/* Tells whether the kernel has complained since the log was opened. */
static int complained(int log)
{
	char line[8192];
	ssize_t length;
	int found = 0;

	sleep(1);
	while ((length = read(log, line, sizeof(line) - 1)) > 0 || errno == EPIPE) {
		line[length > 0 ? length : 0] = 0;
		if (strstr(line, "Call Trace:") || strstr(line, "stack backtrace:"))
			found = 1;
		if (length < 0)
			errno = 0;
	}
	return found;
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

/* Lets a call that another thread is about to make fall asleep, every other time:
   it may be the fault that it does not. */
static void settle(void)
{
	if (patient)
		usleep(50000);
}

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
	struct msghdr msg;

	wait_for(1);
	settle();
	memcpy(data, "x", 1);
	reach(2);
	iov[0] = (struct iovec){ data, 1 };
	msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
	msg.msg_control = control;
	memcpy(control, "nonsense", 8);
	msg.msg_controllen = 8;
	result(sendmsg(tx, &msg, 0));
	return unused;
}

static void *thread_2(void *unused)
{
	struct msghdr msg;

	wait_for(2);
	settle();
	memcpy(data, "x", 1);
	reach(3);
	iov[0] = (struct iovec){ data, 1 };
	msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
	msg.msg_control = control;
	memcpy(control, "nonsense", 8);
	msg.msg_controllen = 8;
	result(sendmsg(tx, &msg, 0));
	return unused;
}

static void *thread_3(void *unused)
{
	struct msghdr msg;

	wait_for(3);
	settle();
	memcpy(data, "x", 1);
	reach(4);
	iov[0] = (struct iovec){ data, 1 };
	msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
	msg.msg_control = control;
	memcpy(control, "nonsense", 8);
	msg.msg_controllen = 8;
	result(sendmsg(tx, &msg, 0));
	return unused;
}

static void *thread_4(void *unused)
{
	struct msghdr msg;

	wait_for(4);
	settle();
	memcpy(data, "x", 1);
	iov[0] = (struct iovec){ data, 1 };
	msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
	msg.msg_control = control;
	memcpy(control, "nonsense", 8);
	msg.msg_controllen = 8;
	result(sendmsg(tx, &msg, 0));
	return unused;
}

static int scenario(void)
{
	pthread_t threads[4];
	struct sockaddr_storage to;
	struct msghdr msg;

	rx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	limit_waits(rx);
	must("bind", bind(rx, (struct sockaddr *)&to, address(&to, "127.0.0.1", 0)));
	tx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	set_option(tx, SOL_SOCKET, SO_ZEROCOPY, 1);
	port = port_of(rx);
	must("connect", connect(tx, (struct sockaddr *)&to, address(&to, "127.0.0.1", port)));
	read_message(tx, 2048, 512, MSG_ERRQUEUE, 0);
	check("recvmsg", "-1, errno 11");
	start(&threads[0], thread_1);
	start(&threads[1], thread_2);
	start(&threads[2], thread_3);
	start(&threads[3], thread_4);
	memcpy(data, "x", 1);
	reach(1);
	iov[0] = (struct iovec){ data, 1 };
	msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
	msg.msg_control = control;
	memcpy(control, "nonsense", 8);
	msg.msg_controllen = 8;
	result(sendmsg(tx, &msg, 0));
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	pthread_join(threads[2], NULL);
	pthread_join(threads[3], NULL);

	return 0;
}

int main(void)
{
	int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	int round, shown = 0;

	must("/dev/kmsg", lseek(log, 0, SEEK_END));
	for (round = 0; round < 6; round++) {
		once(round, scenario);
		if (complained(log)) {
			shown = 1;
			break;
		}
	}
	if (shown) {
		puts("FAULT: the kernel complained, see its log: BUG: kernel NULL pointer dereference in sock_dequeue_err_skb");
		return 1;
	}
	puts("the fault does not show in 6 rounds");
	return 0;
}
