// SPDX-License-Identifier: BSD-3-Clause
/*
 * scm/fifo/udp/ipv4/lo: 2 sends, each to be notified exactly once: 1 missing
 *
 * Seen on Linux 6.12.117 with the series "net: return completions"; it is
 * about N01, Z30 of zcvet's checklist.
 *
 *     gcc -static -o reproducer THIS-FILE && ./reproducer
 *
 * It exits with 1 if the kernel has the fault, with 0 if it has not, and
 * with 125 if that could not be found out, as git bisect run expects. The
 * fault is that a zero-copy send is not notified exactly once.
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
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <linux/errqueue.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
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

/* Requests to the kernel and completions of them, in memory shared with it. */
struct ring {
	int fd;
	unsigned int tail;
	struct io_uring_params p;
	char *submission, *completion;
	struct io_uring_sqe *requests;
};

#define ZEROCOPY_SENDS 2
#define MOST_ELEMENTS 1
#define MOST_CONTROL 512

static char room[2048];
static struct iovec iov[2];
static int watched = -1;

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

/* How often each zero-copy send of the socket watched was notified. */
static unsigned char notified[ZEROCOPY_SENDS];
static int strays;

static void note(unsigned int lo, unsigned int hi)
{
	unsigned long send;

	for (send = lo; send <= hi && send < ZEROCOPY_SENDS; send++)
		notified[send]++;
	if (lo > hi || hi >= ZEROCOPY_SENDS)
		strays++;
}

static int exactly_once(void)
{
	int send, wrong = strays;

	for (send = 0; send < ZEROCOPY_SENDS; send++) {
		if (notified[send] == 1)
			continue;
		printf("send %d was notified %d times\n", send, notified[send]);
		wrong++;
	}
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
	static char data[sizeof(struct zc_info) + MOST_ELEMENTS * sizeof(struct zc_info_elem)];
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
	see_control(fd, &msg);
	return count;
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
			printf("%-20s %s\n", "recvmsg", seen);
	} while (poll(&polled, 1, 1000) > 0 && polled.revents & POLLERR);
}

static char *ring_map(struct ring *ring, size_t length, unsigned long long offset)
{
	char *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, offset);

	if (place == MAP_FAILED)
		must("mmap", -1);
	return place;
}

static void ring_open(struct ring *ring, unsigned int entries)
{
	memset(ring, 0, sizeof(*ring));
	ring->fd = must("io_uring_setup", syscall(SYS_io_uring_setup, entries, &ring->p));
	ring->submission = ring_map(ring, ring->p.sq_off.array + 4 * ring->p.sq_entries, IORING_OFF_SQ_RING);
	ring->completion = ring_map(ring, ring->p.cq_off.cqes + sizeof(struct io_uring_cqe) * ring->p.cq_entries,
				    IORING_OFF_CQ_RING);
	ring->requests = (void *)ring_map(ring, sizeof(struct io_uring_sqe) * ring->p.sq_entries, IORING_OFF_SQES);
}

static unsigned int *ring_word(char *mapping, unsigned int offset)
{
	return (void *)(mapping + offset);
}

/* Adds a request, which ring_submit hands to the kernel. */
static void ring_ask(struct ring *ring, struct io_uring_sqe request)
{
	unsigned int slot = ring->tail++ & (ring->p.sq_entries - 1);

	ring->requests[slot] = request;
	*ring_word(ring->submission, ring->p.sq_off.array + 4 * slot) = slot;
}

static void ring_submit(struct ring *ring, unsigned int count)
{
	__atomic_store_n(ring_word(ring->submission, ring->p.sq_off.tail), ring->tail, __ATOMIC_RELEASE);
	result(syscall(SYS_io_uring_enter, ring->fd, count, 0, 0, NULL, 0));
}

/* Takes a completion, for which it waits so long. */
static void ring_wait(struct ring *ring, int milliseconds)
{
	struct __kernel_timespec limit = { milliseconds / 1000, milliseconds % 1000 * 1000000 };
	struct io_uring_getevents_arg argument = { .ts = (unsigned long)&limit };
	unsigned int *head = ring_word(ring->completion, ring->p.cq_off.head);
	unsigned int *tail = ring_word(ring->completion, ring->p.cq_off.tail);
	struct io_uring_cqe *completion;

	if (*head == __atomic_load_n(tail, __ATOMIC_ACQUIRE))
		syscall(SYS_io_uring_enter, ring->fd, 0, milliseconds > 0,
			IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof(argument));
	seen[0] = 0;
	if (*head == __atomic_load_n(tail, __ATOMIC_ACQUIRE)) {
		see("nothing");
		return;
	}
	completion = (void *)(ring->completion + ring->p.cq_off.cqes);
	completion += *head & (ring->p.cq_entries - 1);
	see("request %llu, result %d, flags %#x", (unsigned long long)completion->user_data,
	    completion->res, completion->flags);
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
}

int main(void)
{
	struct sockaddr_storage to;
	struct msghdr msg;
	int rx, tx, port;
	char *mem, *mem2, *mem3, *mem4, *mem5;
	struct ring ring;

	rx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	limit_waits(rx);
	must("bind", bind(rx, (struct sockaddr *)&to, address(&to, "127.0.0.1", 0)));
	tx = must("socket", socket(AF_INET, SOCK_DGRAM, 0));
	watched = tx;
	set_option(tx, SOL_SOCKET, SO_ZEROCOPY, 1);
	port = port_of(rx);
	must("connect", connect(tx, (struct sockaddr *)&to, address(&to, "127.0.0.1", port)));
	mem = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	mem2 = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	mem3 = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	mem4 = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	mem5 = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	ring_open(&ring, 32);
	msg = (struct msghdr){ .msg_control = mem4 };
	add_request(&msg, 1, 1);
	iov[0] = (struct iovec){ mem, 100 };
	msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 1 };
	msg.msg_control = mem4;
	msg.msg_controllen = 32;
	memcpy(mem2, &msg, sizeof(msg));
	ring_ask(&ring, (struct io_uring_sqe){
		.opcode = IORING_OP_SENDMSG, .fd = tx, .addr = (unsigned long)(mem2),
		.len = 1, .msg_flags = MSG_ZEROCOPY, .flags = IOSQE_IO_LINK,
		.user_data = 1
	});
	msg = (struct msghdr){ .msg_control = mem5 };
	add_request(&msg, 1, 1);
	iov[1] = (struct iovec){ mem, 100 };
	msg = (struct msghdr){ .msg_iov = iov + 1, .msg_iovlen = 1 };
	msg.msg_control = mem5;
	msg.msg_controllen = 32;
	memcpy(mem3, &msg, sizeof(msg));
	ring_ask(&ring, (struct io_uring_sqe){
		.opcode = IORING_OP_SENDMSG, .fd = tx, .addr = (unsigned long)(mem3),
		.len = 1, .msg_flags = MSG_ZEROCOPY, .user_data = 2
	});
	ring_submit(&ring, 2);
	check("io_uring_enter", "2");
	ring_wait(&ring, 6000);
	answer(tx, mem4, 32);
	check("io_uring wait", "request 1, result 100, flags 0; 1/81 size 1: 0-0");
	ring_wait(&ring, 6000);
	answer(tx, mem5, 32);
	check("io_uring wait", "request 2, result 100, flags 0; 1/81 size 1: -");
	ring_wait(&ring, 0);
	check("io_uring wait", "nothing");
	collect(tx);

	if (!exactly_once()) {
		puts("FAULT: 2 sends, each to be notified exactly once: 1 missing");
		return 1;
	}
	puts("the fault does not show");
	return 0;
}
