// SPDX-License-Identifier: BSD-3-Clause

// Package vnet is the virtio-net NIC that the harness itself gives its guests: a
// vhost-user back end whose ports are joined in pairs by a wire. It sees every
// transmitted descriptor, decides when the guest gets its buffers back, and does
// to the frames on the wire what a case asks for by the calls of package
// guest/nic.
//
// # Guests
//
// A guest is untrusted. Whatever it writes into its memory, and whatever a front
// end sends, ends the Network with an error at worst: *RingError when the driver
// broke the rules of the ring, *ProtocolError when the front end broke those of
// vhost-user.
//
// # Locking
//
// One mutex, Network.mutex, guards everything but the immutable parts: ports,
// sessions, rings, rules, logs and the guests' mapped memory. All work goes
// through Network.locked, which holds the mutex, guards against vanished guest
// memory, and publishes used buffers at its end. A Network has one goroutine per
// port that accepts connections and handles their messages, and one per running
// ring that waits for kicks; they, and the callers of the public methods, take
// the mutex for one message, one batch of frames or one call at a time. Nothing
// blocks while it is held: eventfds are non-blocking, and replies to the front
// end, Config.OnSetLink and the writing of captures happen outside. A single
// mutex costs nothing here: a copy of a frame is all there is to do, and the two
// ends of a wire are needed at the same time.
package vnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/memory"
	"github.com/zcvet/zcvet/harness/vnet/vhost"
)

// Config is what a Network is made from. The zero value is a good one.
type Config struct {
	// Ports are the ports to offer, nic.Ports if empty. The peer of each has
	// to be among them.
	Ports []nic.Port
	// OnSetLink makes the guest see a change of link state, which only the
	// machine can: QEMU's set_link. It may be nil; frames are dropped on a
	// wire that is down either way. It is called without locks held.
	OnSetLink func(ctx context.Context, port nic.Port, up bool) error
	// Log takes what is worth a line: connections, drops, the end. It may be
	// nil.
	Log *slog.Logger
}

// RingError says that a guest's driver broke the rules of a virtqueue or of the
// virtio-net header. That is the fault of the kernel in the guest.
type RingError struct {
	Port  nic.Port
	Queue string // "receive" or "transmit"
	Err   error
}

func (e *RingError) Error() string {
	return fmt.Sprintf("the guest broke the %s ring of %s: %v", e.Queue, e.Port, e.Err)
}

// Unwrap returns the cause, a *virtqueue.Error for most.
func (e *RingError) Unwrap() error { return e.Err }

// ProtocolError says that a front end, that is QEMU, broke the vhost-user
// protocol.
type ProtocolError struct {
	Port nic.Port
	Err  error
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("the front end of %s: %v", e.Port, e.Err)
}

// Unwrap returns the cause.
func (e *ProtocolError) Unwrap() error { return e.Err }

// Network is a set of ports and the wires between them. Its methods may be
// called from any goroutine.
type Network struct {
	config Config
	log    *slog.Logger
	ports  []*port // immutable
	done   chan struct{}
	owned  sync.WaitGroup // every goroutine of the Network

	mutex    sync.Mutex
	err      error // that ended the network
	ended    bool
	rules    []*rule
	lastRule int
	waiting  int // bytes of frames that wait in rules
	capture  capture
	scratch  []byte // the frame that is being transmitted
	mangled  []byte // a copy of it for receivers that need one
}

// New returns a Network that listens for the front ends of its ports. A Network
// serves one front end per port at a time and takes another when that has gone,
// with rules and logs unchanged; a machine that starts over is better served by a
// Network of its own.
func New(config Config) (*Network, error) {
	if len(config.Ports) == 0 {
		config.Ports = nic.Ports
	}
	n := &Network{
		config:  config,
		log:     config.Log,
		done:    make(chan struct{}),
		scratch: make([]byte, frame.HeaderSize+frame.MaxLength),
		mangled: make([]byte, frame.MaxLength),
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	for i, name := range config.Ports {
		n.ports = append(n.ports, &port{network: n, name: name, index: i, linkUp: true})
	}
	for _, p := range n.ports {
		if p.peer = n.find(p.name.Peer()); p.peer == nil || n.find(p.name) != p {
			return nil, fmt.Errorf("network: port %q is there twice or without its peer %q", p.name, p.name.Peer())
		}
	}
	// Processes of other users can see the name, though they are turned away;
	// the random part keeps networks of one process apart.
	id := rand.Text()
	for _, p := range n.ports {
		p.socket = fmt.Sprintf("zcvet-%d-%s-%s", os.Getpid(), id, p.name)
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@" + p.socket, Net: "unix"})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("network: %w", err), n.Close())
		}
		p.listener = listener
	}
	for _, p := range n.ports {
		n.owned.Go(p.accept)
	}
	return n, nil
}

func (n *Network) find(name nic.Port) *port {
	for _, p := range n.ports {
		if p.name == name {
			return p
		}
	}
	return nil
}

// Socket returns the name of the abstract Unix socket on which the port waits
// for its front end, without the NUL byte or "@" in front. It returns "" for a
// port the Network does not have.
func (n *Network) Socket(name nic.Port) string {
	if p := n.find(name); p != nil {
		return p.socket
	}
	return ""
}

// Done is closed when the Network has ended, by an error or by Close.
func (n *Network) Done() <-chan struct{} { return n.done }

// Err returns the error that ended the Network: a *RingError, a *ProtocolError,
// or that of a system call that failed. It is nil before the end and after an end
// by Close.
func (n *Network) Err() error {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return n.err
}

// Close ends the Network, if it has not ended yet, and waits for its goroutines.
// It must not be called from Config.OnSetLink. The error is always nil.
func (n *Network) Close() error {
	n.mutex.Lock()
	n.end(nil)
	n.mutex.Unlock()
	n.owned.Wait()
	return nil
}

// ErrClosed is returned by calls to a Network that was closed.
var ErrClosed = errors.New("network: closed")

// end stops everything that waits, so that the goroutines leave. The mutex is
// held.
func (n *Network) end(err error) {
	if n.ended {
		return
	}
	n.ended, n.err = true, err
	if err != nil {
		n.log.Error("network ended", "err", err)
	}
	for _, p := range n.ports {
		if p.listener != nil {
			_ = p.listener.Close()
		}
		if p.connection != nil {
			_ = p.connection.Close()
		}
		p.receive.stop()
		p.transmit.stop()
	}
	close(n.done)
}

// locked runs f with the mutex held and publishes what it completed. An error of
// f ends the network, and is returned; after the end f is not run.
func (n *Network) locked(f func() error) error {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.ended {
		if n.err != nil {
			return n.err
		}
		return ErrClosed
	}
	err := memory.Guard(n.maps, func() error {
		if err := f(); err != nil {
			return err
		}
		// Receivers first: a frame whose buffers the sender sees returned has
		// been shown to the receiver, unless something held it up.
		for _, p := range n.ports {
			p.publishRing(&p.receive, receiveRing)
		}
		for _, p := range n.ports {
			p.publishRing(&p.transmit, transmitRing)
		}
		return nil
	})
	if gone, ok := errors.AsType[*memory.GoneError](err); ok {
		err = &ProtocolError{Port: n.owner(gone.Map), Err: gone}
	}
	if err != nil {
		n.end(err)
	}
	return err
}

func (n *Network) maps() []*memory.Map {
	var maps []*memory.Map
	for _, p := range n.ports {
		if p.session != nil {
			maps = append(maps, p.session.Memory())
		}
	}
	return maps
}

func (n *Network) owner(m *memory.Map) nic.Port {
	for _, p := range n.ports {
		if p.session != nil && p.session.Memory() == m {
			return p.name
		}
	}
	return ""
}

// accept serves the front ends of a port one after the other.
func (p *port) accept() {
	n := p.network
	for {
		connection, err := p.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			n.fail(fmt.Errorf("network: %s: %w", p.name, err))
			return
		}
		if err := ownUser(connection); err != nil {
			n.log.Warn("turned a front end away", "port", p.name, "err", err)
			_ = connection.Close()
			continue
		}
		p.serve(connection)
	}
}

func (n *Network) fail(err error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.end(err)
}

// ownUser refuses processes of other users: anybody may connect to an abstract
// socket.
func ownUser(connection *net.UnixConn) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(file uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(file), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if peerErr != nil {
		return peerErr
	}
	if peer.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("process %d belongs to user %d", peer.Pid, peer.Uid)
	}
	return nil
}

// replyTimeout bounds the wait for a front end that does not read its replies.
// They fit into the socket's buffer, so a correct one never makes us wait.
const replyTimeout = 10 * time.Second

// serve handles the messages of one front end until it hangs up.
func (p *port) serve(connection *net.UnixConn) {
	n := p.network
	defer connection.Close()
	session := vhost.NewSession(p, 2)
	if n.locked(func() error {
		p.session, p.connection = session, connection
		return nil
	}) != nil {
		return
	}
	defer func() {
		_ = n.locked(session.Close)
		// Close was not run, or did not get through, if the network has ended;
		// the rings are stopped then, and nobody looks at the guest's memory.
		n.mutex.Lock()
		defer n.mutex.Unlock()
		if err := session.Close(); err != nil {
			n.end(fmt.Errorf("network: %s: %w", p.name, err))
		}
		p.session, p.connection = nil, nil
		n.log.Debug("front end disconnected", "port", p.name)
	}()
	n.log.Debug("front end connected", "port", p.name)

	messages := vhost.NewConn(connection)
	for {
		message, err := messages.Receive()
		switch {
		case errors.Is(err, vhost.ErrProtocol):
			n.fail(&ProtocolError{Port: p.name, Err: err})
			return
		case err != nil:
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				n.log.Debug("front end lost", "port", p.name, "err", err)
			}
			return
		}
		request := message.Request
		var reply []byte
		var answered bool
		err = n.locked(func() error {
			var err error
			reply, answered, err = session.Handle(message)
			return p.sessionError(err)
		})
		message.Close()
		if err != nil {
			return
		}
		if answered {
			_ = connection.SetWriteDeadline(time.Now().Add(replyTimeout))
			if err := messages.Reply(request, reply); err != nil {
				n.log.Debug("front end lost", "port", p.name, "err", err)
				return
			}
		}
	}
}
