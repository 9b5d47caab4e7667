// SPDX-License-Identifier: BSD-3-Clause

package trace

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// flagName is a bit, or a value, and its name in C.
type flagName struct {
	value int64
	name  string
}

var (
	domains = []flagName{{unix.AF_UNIX, "AF_UNIX"}, {unix.AF_INET, "AF_INET"}, {unix.AF_INET6, "AF_INET6"}, {unix.AF_NETLINK, "AF_NETLINK"}, {unix.AF_PACKET, "AF_PACKET"}, {unix.AF_RDS, "AF_RDS"}, {unix.AF_VSOCK, "AF_VSOCK"}}
	kinds   = []flagName{{unix.SOCK_STREAM, "SOCK_STREAM"}, {unix.SOCK_DGRAM, "SOCK_DGRAM"}, {unix.SOCK_RAW, "SOCK_RAW"}, {unix.SOCK_SEQPACKET, "SOCK_SEQPACKET"}}

	messageFlags = []flagName{
		{unix.MSG_OOB, "MSG_OOB"},
		{unix.MSG_PEEK, "MSG_PEEK"},
		{unix.MSG_DONTROUTE, "MSG_DONTROUTE"},
		{unix.MSG_CTRUNC, "MSG_CTRUNC"},
		{unix.MSG_TRUNC, "MSG_TRUNC"},
		{unix.MSG_DONTWAIT, "MSG_DONTWAIT"},
		{unix.MSG_EOR, "MSG_EOR"},
		{unix.MSG_WAITALL, "MSG_WAITALL"},
		{unix.MSG_ERRQUEUE, "MSG_ERRQUEUE"},
		{unix.MSG_NOSIGNAL, "MSG_NOSIGNAL"},
		{unix.MSG_MORE, "MSG_MORE"},
		{unix.MSG_WAITFORONE, "MSG_WAITFORONE"},
		{unix.MSG_ZEROCOPY, "MSG_ZEROCOPY"},
		{unix.MSG_FASTOPEN, "MSG_FASTOPEN"},
	}
	pollFlags = []flagName{
		{unix.POLLIN, "POLLIN"},
		{unix.POLLPRI, "POLLPRI"},
		{unix.POLLOUT, "POLLOUT"},
		{unix.POLLERR, "POLLERR"},
		{unix.POLLHUP, "POLLHUP"},
		{unix.POLLNVAL, "POLLNVAL"},
		{unix.POLLRDHUP, "POLLRDHUP"},
	}
	epollFlags = []flagName{
		{unix.EPOLLIN, "EPOLLIN"},
		{unix.EPOLLPRI, "EPOLLPRI"},
		{unix.EPOLLOUT, "EPOLLOUT"},
		{unix.EPOLLERR, "EPOLLERR"},
		{unix.EPOLLHUP, "EPOLLHUP"},
		{unix.EPOLLRDHUP, "EPOLLRDHUP"},
		{unix.EPOLLEXCLUSIVE, "EPOLLEXCLUSIVE"},
		{unix.EPOLLONESHOT, "EPOLLONESHOT"},
		{unix.EPOLLET, "EPOLLET"},
	}
	epollOperations = []flagName{{unix.EPOLL_CTL_ADD, "EPOLL_CTL_ADD"}, {unix.EPOLL_CTL_DEL, "EPOLL_CTL_DEL"}, {unix.EPOLL_CTL_MOD, "EPOLL_CTL_MOD"}}
	hows            = []flagName{{unix.SHUT_RD, "SHUT_RD"}, {unix.SHUT_WR, "SHUT_WR"}, {unix.SHUT_RDWR, "SHUT_RDWR"}}
	protections     = []flagName{{unix.PROT_READ, "PROT_READ"}, {unix.PROT_WRITE, "PROT_WRITE"}, {unix.PROT_EXEC, "PROT_EXEC"}}
	mappings        = []flagName{{unix.MAP_SHARED, "MAP_SHARED"}, {unix.MAP_PRIVATE, "MAP_PRIVATE"}, {unix.MAP_ANONYMOUS, "MAP_ANONYMOUS"}, {unix.MAP_HUGETLB, "MAP_HUGETLB"}, {unix.MAP_POPULATE, "MAP_POPULATE"}}
	resources       = []flagName{{unix.RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"}, {unix.RLIMIT_NOFILE, "RLIMIT_NOFILE"}}

	levels = []flagName{{unix.SOL_SOCKET, "SOL_SOCKET"}, {unix.SOL_IP, "SOL_IP"}, {unix.SOL_IPV6, "SOL_IPV6"}, {unix.SOL_TCP, "SOL_TCP"}, {unix.SOL_UDP, "SOL_UDP"}, {287, "SOL_VSOCK"}}
	// optionNames are the options and control messages that the cases use, by
	// level.
	optionNames = map[int64][]flagName{
		unix.SOL_SOCKET: {
			{unix.SO_ERROR, "SO_ERROR"},
			{unix.SO_SNDBUF, "SO_SNDBUF"},
			{unix.SO_RCVBUF, "SO_RCVBUF"},
			{unix.SO_LINGER, "SO_LINGER"},
			{unix.SO_RCVTIMEO, "SO_RCVTIMEO"},
			{unix.SO_SNDTIMEO, "SO_SNDTIMEO"},
			{unix.SO_MARK, "SO_MARK"},
			{unix.SO_TIMESTAMPING, "SO_TIMESTAMPING"},
			{unix.SO_ZEROCOPY, "SO_ZEROCOPY"},
			{unix.SO_TXTIME, "SO_TXTIME"},
			{unix.SO_BROADCAST, "SO_BROADCAST"},
			{unix.SO_REUSEADDR, "SO_REUSEADDR"},
			{unix.SO_BINDTODEVICE, "SO_BINDTODEVICE"},
			{unix.SCM_RIGHTS, "SCM_RIGHTS"},
		},
		unix.SOL_IP: {
			{unix.IP_TTL, "IP_TTL"},
			{unix.IP_TOS, "IP_TOS"},
			{unix.IP_RECVERR, "IP_RECVERR"},
			{unix.IP_MTU_DISCOVER, "IP_MTU_DISCOVER"},
			{unix.IP_PKTINFO, "IP_PKTINFO"},
			{unix.IP_RECVTTL, "IP_RECVTTL"},
			{unix.IP_RECVTOS, "IP_RECVTOS"},
		},
		unix.SOL_IPV6: {
			{unix.IPV6_RECVERR, "IPV6_RECVERR"},
			{unix.IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER"},
			{unix.IPV6_DONTFRAG, "IPV6_DONTFRAG"},
			{unix.IPV6_HOPLIMIT, "IPV6_HOPLIMIT"},
			{unix.IPV6_TCLASS, "IPV6_TCLASS"},
			{unix.IPV6_V6ONLY, "IPV6_V6ONLY"},
			{unix.IPV6_2292PKTOPTIONS, "IPV6_2292PKTOPTIONS"},
		},
		unix.SOL_TCP: {
			{unix.TCP_NODELAY, "TCP_NODELAY"},
			{unix.TCP_CORK, "TCP_CORK"},
			{unix.TCP_QUICKACK, "TCP_QUICKACK"},
			{unix.TCP_FASTOPEN, "TCP_FASTOPEN"},
			{unix.TCP_FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT"},
			{unix.TCP_INFO, "TCP_INFO"},
			{unix.TCP_MAXSEG, "TCP_MAXSEG"},
		},
		unix.SOL_UDP: {{unix.UDP_CORK, "UDP_CORK"}, {unix.UDP_SEGMENT, "UDP_SEGMENT"}},
	}
)

// Bits writes a set of flags as C does, "MSG_ZEROCOPY | MSG_DONTWAIT".
func bits(value int64, names []flagName) string {
	if value == 0 {
		return "0"
	}
	var parts []string
	for _, flag := range names {
		if flag.value != 0 && value&flag.value == flag.value {
			parts = append(parts, flag.name)
			value &^= flag.value
		}
	}
	if value != 0 {
		parts = append(parts, fmt.Sprintf("%#x", uint64(value)))
	}
	return strings.Join(parts, " | ")
}

func one(value int64, names []flagName) string {
	for _, flag := range names {
		if flag.value == value {
			return flag.name
		}
	}
	return fmt.Sprint(value)
}

// Domain, Kind and the functions below write a scalar argument as C does; one
// without a known name as a number.
func Domain(value int64) string { return one(value, domains) }

// Kind is the type of a socket with its flags.
func Kind(value int64) string {
	text := one(value&0xf, kinds)
	if value&unix.SOCK_CLOEXEC != 0 {
		text += " | SOCK_CLOEXEC"
	}
	if value&unix.SOCK_NONBLOCK != 0 {
		text += " | SOCK_NONBLOCK"
	}
	return text
}

// MessageFlags are MSG_*.
func MessageFlags(value int64) string { return bits(value, messageFlags) }

// PollEvents are POLL*.
func PollEvents(value int64) string { return bits(value, pollFlags) }

// EpollEvents are EPOLL*.
func EpollEvents(value int64) string { return bits(value, epollFlags) }

// EpollOperation is EPOLL_CTL_*.
func EpollOperation(value int64) string { return one(value, epollOperations) }

// How is SHUT_*.
func How(value int64) string { return one(value, hows) }

// Protection is PROT_*.
func Protection(value int64) string {
	if value == 0 {
		return "PROT_NONE"
	}
	return bits(value, protections)
}

// Mapping is MAP_*.
func Mapping(value int64) string { return bits(value, mappings) }

// Resource is RLIMIT_*.
func Resource(value int64) string { return one(value, resources) }

// OptionLevel is SOL_*.
func OptionLevel(value int64) string { return one(value, levels) }

// Option is the name of a socket option or control message of a level.
func Option(level, value int64) string { return one(value, optionNames[level]) }
