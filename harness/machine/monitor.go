// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// errMonitorGone is returned for commands to a QEMU that ended.
var errMonitorGone = errors.New("QMP: connection closed")

// monitor is QEMU's control connection.
//
// It stands on go-qemu's SocketMonitor, with a relay in between that hands the
// library one message at a time. The library decodes the greeting with a
// buffered decoder and throws the buffer away, and it returns a reply in memory
// that the next message may overwrite; neither matters when nothing follows
// until the reply has been used.
type monitor struct {
	socket *qmp.SocketMonitor
	relay  *relay
	events chan qmp.Event // closed at the end of the connection

	lock   sync.Mutex // one command at a time
	broken error      // why no further command can be sent
}

// connectMonitor takes our end of a QMP connection and negotiates. It returns
// when QEMU has answered, or when ctx ends.
func connectMonitor(ctx context.Context, qemu *net.UnixConn) (*monitor, error) {
	library, ours, err := dialOurselves()
	if err != nil {
		_ = qemu.Close()
		return nil, err
	}
	m := &monitor{
		socket: library,
		relay:  startRelay(ours, qemu),
		events: make(chan qmp.Event, 256),
	}

	connected := make(chan error, 1)
	go func() { connected <- m.socket.Connect() }()
	select {
	case err := <-connected:
		if err != nil {
			m.relay.stop()
			_ = m.socket.Disconnect()
			return nil, fmt.Errorf("QMP: %w", err)
		}
	case <-ctx.Done():
		m.relay.stop()
		<-connected
		_ = m.socket.Disconnect()
		return nil, fmt.Errorf("QMP: %w", context.Cause(ctx))
	}
	events, err := m.socket.Events(ctx)
	if err != nil {
		m.close()
		return nil, fmt.Errorf("QMP: %w", err)
	}
	go m.pump(events)
	m.relay.consumed()
	return m, nil
}

// pump keeps the library's unbuffered channel empty, because replies wait behind
// events. An event nobody has room for is dropped.
func (m *monitor) pump(events <-chan qmp.Event) {
	defer close(m.events)
	for event := range events {
		select {
		case m.events <- event:
		default:
		}
	}
}

// run executes a command and decodes what it returns into result, which may be
// nil. An error of QEMU's is returned in QEMU's words.
func (m *monitor) run(ctx context.Context, command string, arguments, result any) error {
	return m.runWithFile(ctx, nil, command, arguments, result)
}

// runWithFile passes a descriptor along with the command.
func (m *monitor) runWithFile(ctx context.Context, file *os.File, command string, arguments, result any) error {
	encoded, err := json.Marshal(qmp.Command{Execute: command, Args: arguments})
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}

	m.lock.Lock()
	defer m.lock.Unlock()
	if m.broken != nil {
		return fmt.Errorf("QMP %s: %w", command, m.broken)
	}
	type reply struct {
		body []byte
		err  error
	}
	replies := make(chan reply, 1)
	go func() {
		body, err := m.socket.RunWithFile(encoded, file)
		body = bytes.Clone(body)
		m.relay.consumed()
		replies <- reply{body, err}
	}()
	select {
	case got := <-replies:
		if got.err != nil {
			if m.relay.closed() {
				m.broken = errMonitorGone
				return fmt.Errorf("QMP %s: %w", command, m.broken)
			}
			return fmt.Errorf("QMP %s: %w", command, got.err)
		}
		if result == nil {
			return nil
		}
		answer := struct {
			Return any `json:"return"`
		}{result}
		if err := json.Unmarshal(got.body, &answer); err != nil {
			return fmt.Errorf("QMP %s: %w", command, err)
		}
		return nil
	case <-ctx.Done():
		// The reply may still come, and would be taken for that of the next
		// command.
		m.broken = fmt.Errorf("no answer to %s: %w", command, context.Cause(ctx))
		m.relay.stop()
		return fmt.Errorf("QMP: %w", m.broken)
	}
}

// close ends the connection; the channel of events is closed soon after.
func (m *monitor) close() {
	m.relay.stop()
	_ = m.socket.Disconnect()
	m.relay.wait()
}

// dialOurselves returns go-qemu's end of a new connection and the other one.
// The library only dials addresses; the abstract name it dials here exists for
// that moment, and nobody else is let in.
func dialOurselves() (*qmp.SocketMonitor, *net.UnixConn, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@zcvet-qmp-" + rand.Text()})
	if err != nil {
		return nil, nil, fmt.Errorf("QMP: %w", err)
	}
	defer func() { _ = listener.Close() }()

	socket, err := qmp.NewSocketMonitor("unix", listener.Addr().String(), 10*time.Second)
	if err != nil {
		return nil, nil, fmt.Errorf("QMP: %w", err)
	}
	for {
		if err := listener.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return nil, nil, fmt.Errorf("QMP: %w", err)
		}
		conn, err := listener.AcceptUnix()
		if err != nil {
			_ = socket.Disconnect()
			return nil, nil, fmt.Errorf("QMP: %w", err)
		}
		if peer, err := peerProcess(conn); err == nil && peer == os.Getpid() {
			return socket, conn, nil
		}
		// Abstract names have no permissions; a stranger was first.
		_ = conn.Close()
	}
}

func peerProcess(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var optionErr error
	err = raw.Control(func(fd uintptr) {
		credentials, optionErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, optionErr); err != nil {
		return 0, err
	}
	return int(credentials.Pid), nil
}

// relay copies between go-qemu and QEMU. After each reply it waits until the
// library has used it.
type relay struct {
	library, qemu *net.UnixConn
	used          chan struct{} // one token per reply that was used
	done          chan struct{} // closed when QEMU's side has ended
	stopped       chan struct{} // closed by stop
	stopOnce      sync.Once
	running       sync.WaitGroup
}

func startRelay(library, qemu *net.UnixConn) *relay {
	r := &relay{library: library, qemu: qemu, used: make(chan struct{}, 1), done: make(chan struct{}), stopped: make(chan struct{})}
	r.running.Go(r.commands)
	r.running.Go(r.replies)
	return r
}

// consumed says that the library is done with the reply it got last.
func (r *relay) consumed() {
	select {
	case r.used <- struct{}{}:
	default:
	}
}

func (r *relay) closed() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (r *relay) stop() {
	r.stopOnce.Do(func() {
		_ = r.qemu.Close()
		_ = r.library.Close()
		close(r.stopped)
	})
}

func (r *relay) wait() { r.running.Wait() }

// commands forwards what the library sends, descriptors included.
func (r *relay) commands() {
	defer r.stop()
	data, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	for {
		n, controlN, _, _, err := r.library.ReadMsgUnix(data, control)
		if n == 0 || err != nil {
			return
		}
		_, _, err = r.qemu.WriteMsgUnix(data[:n], control[:controlN], nil)
		closeRights(control[:controlN])
		if err != nil {
			return
		}
	}
}

// closeRights closes the descriptors that came with a message.
func closeRights(control []byte) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

func (r *relay) replies() {
	defer r.stop()
	defer close(r.done)
	reader := bufio.NewReader(r.qemu)
	for {
		line, err := reader.ReadBytes('\n')
		if err != nil {
			return
		}
		line = append(bytes.TrimSpace(line), '\n')
		if _, err := r.library.Write(line); err != nil {
			return
		}
		if !isReply(line) {
			continue
		}
		select {
		case <-r.used:
		case <-r.stopped:
			return
		}
	}
}

func isReply(line []byte) bool {
	var message struct {
		Return json.RawMessage `json:"return"`
		Error  json.RawMessage `json:"error"`
	}
	return json.Unmarshal(line, &message) == nil && (message.Return != nil || message.Error != nil)
}
