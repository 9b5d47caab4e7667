// SPDX-License-Identifier: BSD-3-Clause
/*
 * scm/fifo/udp/ipv4/lo: 90 sends, each to be notified exactly once: 7 twice
 *
 * Seen on Linux 6.12.117 with the series "net: return completions"; it is
 * about N01, Z30 of zcvet's checklist.
 *
 *     gcc -static -pthread -o reproducer THIS-FILE && ./reproducer
 *
 * It exits with 1 if the kernel has the fault, with 0 if it has not, and
 * with 125 if that could not be found out, as git bisect run expects. The
 * fault is that a zero-copy send is not notified exactly once.
 *
 * The case had 5 threads in the kernel at the same time, and so has the
 * program. There were 500 calls more than the record has, so each thread
 * makes those that are known, and none of what is missing between them. The
 * case sent 90 times, of which few are known, so they are repeated 10 times.
 * They run freely, and those that only read do so until the others are done.
 * It depends on the moment what comes of it, so everything is done 20 times;
 * a kernel with the fault may need more.
 *
 * zcvet made it from the system calls of that case, which runs with
 *     zcvet run --kernel 6.12 --series mine --suite scm/fifo/udp/ipv4/lo
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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
#include <linux/types.h>
#include <unistd.h>

#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#ifndef SO_EE_ORIGIN_ZEROCOPY
#define SO_EE_ORIGIN_ZEROCOPY 0x5
#endif
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 0x3c
#endif
#ifdef SCM_ZC_NOTIFICATION
#include <linux/socket.h>
#else
#define SCM_ZC_NOTIFICATION 81

struct zc_info_elem {
	__u32	lo;
	__u32	hi;
	__u8	zerocopy;
	__u8	pad[3];
};

struct zc_info {
	__u32			size;
	struct zc_info_elem	arr[];
};
#endif
#define ZEROCOPY_SENDS 90
#define MOST_ELEMENTS 1
#define MOST_CONTROL 512

static __thread char room[2048];
static __thread char data[100];
static __thread char control[512] __attribute__((aligned(8)));
static __thread struct iovec iov[1];
static int watched = -1;
static int rx;
static int tx;
static int port;

static __thread char seen[4096];

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

/* Receives what comes within a time. */
static void take(int fd, size_t length, int milliseconds)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };

	poll(&polled, 1, milliseconds);
	recv(fd, room, length, MSG_DONTWAIT);
}

/* How often each zero-copy send of the socket watched was notified. */
static unsigned char notified[ZEROCOPY_SENDS];
static int strays;

static void note(unsigned int lo, unsigned int hi)
{
	unsigned long send;

	for (send = lo; send <= hi && send < ZEROCOPY_SENDS; send++)
		__atomic_add_fetch(&notified[send], 1, __ATOMIC_RELAXED);
	if (lo > hi || hi >= ZEROCOPY_SENDS)
		__atomic_add_fetch(&strays, 1, __ATOMIC_RELAXED);
}

/* How many zero-copy sends of that socket the kernel has taken. */
static int sends;

/* Counts the messages that a call has sent. */
static void sent(int fd, long value, int messages)
{
	if (fd == watched && value > 0)
		__atomic_add_fetch(&sends, messages > 1 ? value : 1, __ATOMIC_RELAXED);
}

static int exactly_once(void)
{
	int send, wrong = strays;

	for (send = 0; send < sends; send++) {
		if (notified[send] == 1)
			continue;
		printf("send %d was notified %d times\n", send, notified[send]);
		wrong++;
	}
	for (; send < ZEROCOPY_SENDS; send++)
		wrong += notified[send];
	if (strays)
		printf("%d notifications of sends that never were\n", strays);
	return !wrong;
}

/* Adds a control message. */
static void add_control(struct msghdr *msg, int level, int type, const void *data, size_t length)
{
	struct cmsghdr *cmsg = (void *)((char *)msg->msg_control + msg->msg_controllen);

	memset(cmsg, 0, CMSG_SPACE(length));
	cmsg->cmsg_level = level;
	cmsg->cmsg_type = type;
	cmsg->cmsg_len = CMSG_LEN(length);
	memcpy(CMSG_DATA(cmsg), data, length);
	msg->msg_controllen += CMSG_SPACE(length);
}

/* Asks for notifications, with room for so many. */
static void add_request(struct msghdr *msg, unsigned int size, size_t elements)
{
	static __thread char data[sizeof(struct zc_info) + MOST_ELEMENTS * sizeof(struct zc_info_elem)];
	size_t length = sizeof(struct zc_info) + elements * sizeof(struct zc_info_elem);

	memset(data, 0xa5, sizeof(data));
	memcpy(data, &size, sizeof(size));
	add_control(msg, SOL_SOCKET, SCM_ZC_NOTIFICATION, data, length);
}

/* Bytes that the caller did not write and that no field of the answer is. */
static int foreign(const unsigned char *bytes, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++)
		if (bytes[i] != 0 && bytes[i] != 0xa5)
			return 1;
	return 0;
}

/* Shows the elements of an array; a count of -1 ends it where none was written. */
static void see_elements(int fd, const unsigned char *data, size_t length, long count)
{
	static const unsigned char unwritten[12] = {
		0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5
	};
	int leaks = 0;
	long i;

	for (i = 0; length >= 12; i++, data += 12, length -= 12) {
		unsigned int lo, hi;

		if (count < 0 && !memcmp(data, unwritten, 12))
			count = i;
		if (count >= 0 && i >= count) {
			leaks |= foreign(data, 12);
			continue;
		}
		if (!memcmp(data, unwritten, 12)) {
			see(" -");
			continue;
		}
		memcpy(&lo, data, 4);
		memcpy(&hi, data + 4, 4);
		see(" %u-%u", lo, hi);
		if (data[8] != 1)
			see(data[8] ? " flag %d" : " COPIED", data[8]);
		leaks |= foreign(data + 9, 3);
		if (fd == watched)
			note(lo, hi);
	}
	leaks |= foreign(data, length);
	if (leaks)
		see(", foreign bytes");
}

static void see_answer(int fd, const unsigned char *data, size_t length)
{
	unsigned int size;

	if (length < 4)
		return;
	memcpy(&size, data, 4);
	see(" size %u:", size);
	see_elements(fd, data + 4, length - 4, size);
}

/* Shows the control messages of a send as the kernel left them. */
static void answer(int fd, const void *control, size_t length)
{
	const unsigned char *at = control, *end = at + length;
	struct cmsghdr cmsg;

	while (at + sizeof(cmsg) <= end) {
		const unsigned char *data = at + sizeof(cmsg);
		size_t size;

		memcpy(&cmsg, at, sizeof(cmsg));
		if (cmsg.cmsg_len < sizeof(cmsg) || cmsg.cmsg_len > (size_t)(end - at))
			break;
		size = cmsg.cmsg_len - sizeof(cmsg);
		see("; %d/%d", cmsg.cmsg_level, cmsg.cmsg_type);
		if (cmsg.cmsg_level == SOL_SOCKET && cmsg.cmsg_type == SCM_ZC_NOTIFICATION)
			see_answer(fd, data, size);
		else
			see_sum(",", data, size);
		at += CMSG_ALIGN(cmsg.cmsg_len);
	}
	if (at < end)
		see_sum(", rest", at, end - at);
}

/* Shows the control messages of what was received. */
static void see_control(int fd, struct msghdr *msg)
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
		if (fd == watched && error.ee_origin == SO_EE_ORIGIN_ZEROCOPY)
			note(error.ee_info, error.ee_data);
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
	see_control(fd, &msg);
	return count;
}

static int all_notified(void)
{
	int send = 0;

	while (send < sends && notified[send])
		send++;
	return send == sends;
}

/* Reads the error queue until no notification has come for a while. */
static void collect(int fd)
{
	struct pollfd polled = { .fd = fd };
	socklen_t length;
	int error;

	do {
		/* An error of the socket is POLLERR until somebody takes it. */
		length = sizeof(error);
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
		while (read_message(fd, 2048, 512, MSG_ERRQUEUE, 0) >= 0)
			;
	} while (poll(&polled, 1, all_notified() ? 50 : 1000) > 0 && polled.revents & POLLERR);
}

/* Set when the threads that do more than read are done. */
static volatile int finished;

static void start(pthread_t *thread, void *(*run)(void *))
{
	errno = pthread_create(thread, NULL, run, NULL);
	must("pthread_create", errno ? -1 : 0);
}

/* Does everything in a process of its own, of which nothing is left, and tells
   whether the fault showed. */
static int once(int round, int (*run)(void))
{
	int status;
	pid_t child;

	fflush(stdout);
	(void)round;
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
	while (!finished) {
		take(rx, 101, 10);
	}
	return unused;
}

static void *thread_2(void *unused)
{
	struct msghdr msg;
	int again, turn;

	for (again = 0; again < 10; again++) {
		for (turn = 0; turn < 3; turn++) {
			memset(data, 0, 100);
			iov[0] = (struct iovec){ data, 100 };
			msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
			msg.msg_control = control;
			add_request(&msg, 1, 1);
			sent(tx, result(sendmsg(tx, &msg, MSG_ZEROCOPY)), 1);
			answer(tx, control, 32);
		}
	}
	return unused;
}

static void *thread_3(void *unused)
{
	while (!finished) {
		read_message(tx, 2048, 512, MSG_ERRQUEUE, 0);
	}
	return unused;
}

static int scenario(void)
{
	pthread_t threads[5];
	struct sockaddr_storage to;

	rx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	limit_waits(rx);
	must("bind", bind(rx, (struct sockaddr *)&to, address(&to, "127.0.0.1", 0)));
	tx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	watched = tx;
	set_option(tx, SOL_SOCKET, SO_ZEROCOPY, 1);
	port = port_of(rx);
	must("connect", connect(tx, (struct sockaddr *)&to, address(&to, "127.0.0.1", port)));
	start(&threads[0], thread_1);
	start(&threads[1], thread_2);
	start(&threads[2], thread_2);
	start(&threads[3], thread_2);
	start(&threads[4], thread_3);
	pthread_join(threads[1], NULL);
	pthread_join(threads[2], NULL);
	pthread_join(threads[3], NULL);
	finished = 1;
	pthread_join(threads[0], NULL);
	pthread_join(threads[4], NULL);
	collect(tx);

	return !exactly_once();
}

int main(void)
{
	int round, shown = 0;

	for (round = 0; round < 20; round++) {
		shown += once(round, scenario);
	}
	if (shown) {
		printf("the fault showed in %d of 20 rounds\n", shown);
		puts("FAULT: 90 sends, each to be notified exactly once: 7 twice");
		return 1;
	}
	puts("the fault does not show in 20 rounds");
	return 0;
}
