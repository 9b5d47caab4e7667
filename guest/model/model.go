// SPDX-License-Identifier: BSD-3-Clause

package model

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

// Config is what the model has to know about the socket.
type Config struct {
	// Stream is a TCP socket; otherwise it is a connected UDP socket.
	Stream bool
	// Device tells that the host drives the device: Hold, Release, Unhold,
	// Withhold and Acknowledge make sense, and data is sent from the
	// application's pages. Otherwise the link is the loopback device, which
	// copies.
	Device bool
	// Requests is the largest number of notifications a send may ask for by
	// SCM_ZC_NOTIFICATION, 0 when the kernel has no such thing.
	Requests int
	// LargestSend bounds Operation.Size, and the chunks of one datagram
	// together, in bytes.
	LargestSend int
}

// TakesID tells whether a send has taken an id: each zero-copy send that succeeded,
// unless it was an empty one of a stream. An empty datagram counts, because
// __ip_append_data counts its UDP header.
func (c Config) TakesID(op Operation, outcome Outcome) bool {
	return op.Kind == Send && op.Zerocopy && outcome.Err == nil && (outcome.Sent > 0 || !c.Stream)
}

// Outcome is what one operation has shown.
type Outcome struct {
	// Sent is how many bytes a Send or Stamp took, Err why it took none, as
	// the kernel gave it.
	Sent int
	Err  error
	// Answer is what a Send's request brought, if the call succeeded and the
	// answer can be read.
	Answer []notify.Notification
	// Unread tells that there is no telling what the request brought: the
	// control buffer could not be written to.
	Unread bool
	// Entries is what a Read took off the error queue, in order.
	Entries []notify.Notification
	// Resent tells that a stream had sent something a second time by then.
	Resent bool
}

// Violation is a departure from the model.
type Violation struct {
	// Rule is the id of the checklist.
	Rule string
	// Text says what was expected, what came and why it matters.
	Text string
}

func (v *Violation) Error() string { return v.Rule + ": " + v.Text }

func violation(rule, format string, args ...any) error {
	return &Violation{Rule: rule, Text: fmt.Sprintf(format, args...)}
}

// status is what the model knows about the notification of a send.
type status int

const (
	// blocked: it cannot be there, the kernel still needs the buffer.
	blocked status = iota
	// free: it may be there.
	free
	// due: it must be there, unless it was told.
	due
	// told: the application has it.
	told
)

// send is a zero-copy send that took an id.
type send struct {
	status status
	// either tells that the kernel may copy the data or not. Ip_append_data
	// leaves the checksum of a datagram that begins with MSG_MORE to the
	// processor, which then copies; and a merged entry keeps the flag of the
	// first, so what may have merged with such a send is as open.
	either bool
}

// stamp is a timestamp in the error queue.
type stamp struct {
	// before is how many ids had been given when it was queued: it lies between
	// the notification of send before-1 and that of send before.
	before int
	read   bool
}

// Model is the state of a sender that zcvet can know from outside. Its rules are
// those of Documentation/networking/msg_zerocopy.rst and, for requests, those
// all revisions of the series share.
type Model struct {
	config Config

	ids    []send
	stamps []stamp
	// lastStamp is the key of the newest timestamp read, see readStamp.
	lastStamp uint32
	anyStamp  bool

	held, withheld, corked, shut, gone bool
	// resent tells that a stream has sent something twice. The device may give the
	// second copy back after the acknowledgement of what comes behind it.
	resent bool
	// frames holds, for each datagram the device keeps, the ids in it.
	frames [][]int
	// chunks are the ids in the datagram that is not sent yet, chunkBytes its
	// length so far.
	chunks     []int
	chunkBytes int
}

// New returns the model of a fresh socket with SO_ZEROCOPY set.
func New(config Config) *Model { return &Model{config: config} }

// Applicable tells whether the operation makes sense now. What does not is left
// out of a sequence: either it could not be carried out, or nothing that the
// kernel did then would be wrong.
func (m *Model) Applicable(op Operation) bool {
	switch op.Kind {
	case Send:
		return m.sendable(op)
	case Stamp:
		// Otherwise the place of the timestamp among the notifications is open.
		return m.Flowing() && !m.gone && !m.shut
	case Read:
		return true
	case Hold:
		return m.config.Device && m.Flowing() && !m.gone
	case Release:
		// The frames of a stream do not tell which sends are in them.
		return m.held && !m.config.Stream
	case Unhold:
		return m.held
	case Withhold:
		return m.config.Device && m.config.Stream && m.Flowing() && !m.gone && !m.shut
	case Acknowledge:
		return m.withheld
	case Uncork:
		return m.corked
	case Shutdown:
		return !m.corked && !m.shut && !m.gone
	case PeerClose:
		return !m.corked && !m.gone
	}
	return false
}

func (m *Model) sendable(op Operation) bool {
	datagram := !m.config.Stream
	switch {
	case op.Size < 0 || op.Size > m.config.LargestSend || op.Request < 0 || op.Request > m.config.Requests:
		return false
	case op.Fault == BadControl && op.Request == 0, op.Fault == BadData && op.Size == 0:
		return false
	case op.More && (op.Size == 0 || m.shut || m.gone):
		return false
	case datagram && (m.corked || op.More):
		// A chunk that fails takes the whole datagram with it, and a request
		// with a later chunk need not be read (N15).
		return op.Size > 0 && m.chunkBytes+op.Size <= m.config.LargestSend && op.Fault == NoFault && op.Request == 0
	}
	return true
}

// Flowing tells that nothing keeps what was sent from being received,
// acknowledged and notified.
func (m *Model) Flowing() bool {
	return !m.held && !m.withheld && !m.corked && !(m.config.Stream && m.gone)
}

// Settled says that everything sent has been received and acknowledged and that
// the device has given all buffers back. The model must be flowing.
func (m *Model) Settled() {
	for id := range m.ids {
		if m.ids[id].status == free {
			m.ids[id].status = due
		}
	}
}

// Gone tells that the receiver's socket is closed.
func (m *Model) Gone() bool { return m.gone }

// Untold is the number of sends whose notification the application does not have.
func (m *Model) Untold() int { return m.count(blocked) + m.count(free) + m.count(due) }

// Due is the number of sends whose notification must be in the error queue.
func (m *Model) Due() int { return m.count(due) }

// MayHold tells whether an entry may be in the error queue, MustHold whether one
// must.
func (m *Model) MayHold() bool { return m.count(free) > 0 || m.MustHold() }

// MustHold: see MayHold.
func (m *Model) MustHold() bool { return m.count(due) > 0 || m.unreadStamps() > 0 }

func (m *Model) count(wanted status) int {
	count := 0
	for _, send := range m.ids {
		if send.status == wanted {
			count++
		}
	}
	return count
}

func (m *Model) unreadStamps() int {
	count := 0
	for _, stamp := range m.stamps {
		if !stamp.read {
			count++
		}
	}
	return count
}

// Apply takes an applicable operation and its outcome into the model, or returns
// a *Violation.
func (m *Model) Apply(op Operation, outcome Outcome) error {
	m.resent = m.resent || outcome.Resent
	switch op.Kind {
	case Send:
		return m.sent(op, outcome)
	case Stamp:
		if outcome.Err != nil || outcome.Sent != 1 {
			return violation("Z39", "a send of one byte that asks for a timestamp: %d, %v", outcome.Sent, outcome.Err)
		}
		m.stamps = append(m.stamps, stamp{before: len(m.ids)})
	case Read:
		for _, entry := range outcome.Entries {
			if err := m.read(entry); err != nil {
				return err
			}
		}
		if op.Count == 0 && m.unreadStamps() > 0 {
			return violation("Z39", "%d timestamps are missing from the error queue", m.unreadStamps())
		}
	case Hold:
		m.held = true
	case Release:
		released := min(op.Count, len(m.frames))
		for _, frame := range m.frames[:released] {
			m.unblock(frame)
		}
		m.frames = m.frames[released:]
	case Unhold:
		m.held = false
		m.frames = nil
		m.unblockAll()
	case Withhold:
		m.withheld = true
	case Acknowledge:
		m.withheld = false
		m.unblockAll()
	case Uncork:
		if m.config.Stream {
			m.corked = false
		} else {
			m.transmit()
		}
	case Shutdown:
		m.shut = true
	case PeerClose:
		m.gone = true
		if m.config.Stream {
			// A reset gives everything up that is not acknowledged.
			m.unblockAll()
		}
	}
	return nil
}

func (m *Model) unblock(ids []int) {
	for _, id := range ids {
		if m.ids[id].status == blocked {
			m.ids[id].status = free
		}
	}
}

// unblockAll frees every send but those whose reason is still there.
func (m *Model) unblockAll() {
	if m.config.Stream && m.gone || !m.held && !m.withheld {
		for id := range m.ids {
			if m.ids[id].status == blocked && !m.inChunks(id) {
				m.ids[id].status = free
			}
		}
	}
}

func (m *Model) inChunks(id int) bool {
	return len(m.chunks) > 0 && id >= m.chunks[0]
}

func (m *Model) sent(op Operation, outcome Outcome) error {
	earlier := len(m.ids)
	if outcome.Err != nil {
		if err := m.refused(op, outcome.Err); err != nil {
			return err
		}
		if !m.config.Stream && m.corked {
			// udp_sendmsg drops what the datagram had so far.
			m.unblock(m.chunks)
			m.chunks, m.chunkBytes, m.corked = nil, 0, false
		}
		return nil
	}
	if err := m.accepted(op, outcome.Sent); err != nil {
		return err
	}
	if m.config.TakesID(op, outcome) {
		m.ids = append(m.ids, send{either: m.mayCopy(op)})
	}
	if m.config.Stream {
		m.streamed(op, outcome.Sent, earlier)
	} else {
		m.transmitted(op, earlier)
	}
	if op.Request > 0 && !outcome.Unread {
		return m.answered(op, outcome.Answer, earlier)
	}
	return nil
}

// mayCopy: see send.either.
func (m *Model) mayCopy(op Operation) bool {
	if !m.config.Device || m.config.Stream {
		return false
	}
	if m.corked || op.More {
		return true
	}
	last := len(m.ids) - 1
	separated := len(m.stamps) > 0 && m.stamps[len(m.stamps)-1].before == len(m.ids)
	return last >= 0 && m.ids[last].either && m.ids[last].status != told && !separated
}

// streamed takes a send into a stream.
func (m *Model) streamed(op Operation, sent, earlier int) {
	if sent > 0 {
		m.corked = op.More
	}
	if !m.held && !m.withheld || m.gone {
		for id := earlier; id < len(m.ids); id++ {
			m.ids[id].status = free
		}
	}
}

// transmitted takes a chunk of a datagram, mostly the only one.
func (m *Model) transmitted(op Operation, earlier int) {
	for id := earlier; id < len(m.ids); id++ {
		m.chunks = append(m.chunks, id)
	}
	m.chunkBytes += op.Size
	m.corked = op.More
	if !m.corked {
		m.transmit()
	}
}

// transmit sends the datagram.
func (m *Model) transmit() {
	if m.held {
		m.frames = append(m.frames, m.chunks)
	} else {
		m.unblock(m.chunks)
	}
	m.chunks, m.chunkBytes, m.corked = nil, 0, false
}

// accepted judges a send that succeeded.
func (m *Model) accepted(op Operation, sent int) error {
	switch {
	case m.shut:
		return violation("Z11", "a send of %d bytes after shutdown(SHUT_WR) succeeded where EPIPE was expected", op.Size)
	case sent > op.Size:
		return violation("Z13", "a send of %d bytes says that it took %d", op.Size, sent)
	case op.Fault == BadData && (!m.config.Stream || sent == op.Size):
		return violation("Z62", "a send of %d bytes, the last of them unmapped, took %d where EFAULT was expected: the peer gets what the process never had", op.Size, sent)
	case op.Fault == BadData:
		return nil
	case sent < op.Size && (!m.config.Stream || m.Flowing()):
		return violation("Z13", "a send of %d bytes took %d, with nothing in the way of the rest", op.Size, sent)
	}
	return nil
}

// refused judges a send that failed: each error needs its reason.
func (m *Model) refused(op Operation, err error) error {
	reason := false
	switch {
	case errors.Is(err, unix.EFAULT):
		reason = op.Fault != NoFault
	case errors.Is(err, unix.EINVAL):
		// A stream turns every error of a control message into this one.
		reason = op.Fault == BadControl
	case errors.Is(err, unix.EPIPE):
		reason = m.shut || m.gone && m.config.Stream
	case errors.Is(err, unix.ECONNRESET):
		reason = m.gone && m.config.Stream
	case errors.Is(err, unix.ECONNREFUSED):
		reason = m.gone && !m.config.Stream
	case errors.Is(err, unix.EAGAIN):
		reason = !m.Flowing()
	case errors.Is(err, unix.ENOBUFS):
		// Both the sends under way and the notifications that nobody read
		// are charged to the socket.
		reason = m.Untold() > 0 && (op.Zerocopy || op.Request > 0)
	}
	if !reason {
		return violation("Z11", "%v: %v, and nothing that was done explains it", op, err)
	}
	return nil
}

// answered judges what a request brought.
func (m *Model) answered(op Operation, answer []notify.Notification, earlier int) error {
	if len(answer) > op.Request {
		return violation("N01", "room for %d notifications, came %d: the caller's memory behind the request is overwritten", op.Request, len(answer))
	}
	for _, entry := range answer {
		if entry.High >= entry.Low && int64(entry.High) >= int64(earlier) && int64(entry.High) < int64(len(m.ids)) {
			return violation("N01", "%v came with send %d itself: a call's own notification cannot be in its control message", entry, earlier)
		}
		if err := m.tell(entry); err != nil {
			return err
		}
	}
	if left := m.dueBefore(earlier); len(answer) < op.Request && left > 0 {
		return violation("N01", "room for %d notifications, came %d, and %d sends whose notifications are in the error queue were left out: they wait for a call that may never be made", op.Request, len(answer), left)
	}
	return nil
}

func (m *Model) dueBefore(end int) int {
	count := 0
	for _, send := range m.ids[:end] {
		if send.status == due {
			count++
		}
	}
	return count
}

// read judges an entry of the error queue.
func (m *Model) read(entry notify.Notification) error {
	if entry.Zerocopy() {
		for _, stamp := range m.stamps {
			if !stamp.read && int64(stamp.before) <= int64(entry.Low) {
				return violation("Z35", "%v was read before a timestamp that was queued ahead of send %d: that one is lost, or the order of the error queue is", entry, stamp.before)
			}
		}
		return m.tell(entry)
	}
	if entry.Origin == notify.OriginTimestamping {
		return m.readStamp(entry)
	}
	return violation("Z21", "an entry of the error queue that nothing explains: %v", entry)
}

// readStamp judges a timestamp. Ee_data numbers the sends, or the bytes of a
// stream, so it grows; a segment that is sent again is stamped again.
func (m *Model) readStamp(entry notify.Notification) error {
	if m.anyStamp && entry.High == m.lastStamp {
		return nil
	}
	for i := range m.stamps {
		stamp := &m.stamps[i]
		if stamp.read {
			continue
		}
		if m.anyStamp && entry.High < m.lastStamp {
			return violation("Z39", "timestamp %d came after timestamp %d", entry.High, m.lastStamp)
		}
		for id, send := range m.ids[:stamp.before] {
			if send.status != told && m.ordered() {
				return violation("Z35", "timestamp %d was read before the notification of send %d, which was queued first: that one is lost, or the order of the error queue is", entry.High, id)
			}
		}
		stamp.read = true
		m.anyStamp, m.lastStamp = true, entry.High
		return nil
	}
	return violation("Z39", "timestamp %d is one too many", entry.High)
}

// tell judges a notification, read by either way, and notes that the application
// has it.
func (m *Model) tell(entry notify.Notification) error {
	switch {
	case entry.High < entry.Low:
		return violation("Z21", "the range %v runs backwards", entry)
	case int64(entry.High) >= int64(len(m.ids)):
		return violation("Z10", "%v (by %s) is about sends that never were: %d have been made", entry, entry.Way, len(m.ids))
	}
	for id := entry.Low; id <= entry.High; id++ {
		switch m.ids[id].status {
		case told:
			return violation("Z30", "send %d was notified already, now again in %v (by %s): its buffer is handed out twice", id, entry, entry.Way)
		case blocked:
			return violation(m.reason(int(id)), "%v (by %s), but %s: the application would overwrite data that is still needed", entry, entry.Way, m.why(int(id)))
		}
	}
	if err := m.inOrder(entry); err != nil {
		return err
	}
	for _, stamp := range m.stamps {
		if int64(entry.Low) < int64(stamp.before) && int64(stamp.before) <= int64(entry.High) {
			return violation("Z32", "%v (by %s) merges what a timestamp separated, queued ahead of send %d", entry, entry.Way, stamp.before)
		}
	}
	if entry.Copied == m.config.Device && !m.ids[entry.Low].either {
		return violation(map[notify.Way]string{notify.ErrorQueue: "Z50", notify.Control: "N06"}[entry.Way],
			"%v (by %s): %s", entry, entry.Way, map[bool]string{
				true:  "the device reads the application's pages, so nothing was copied",
				false: "data is copied on the loopback device",
			}[m.config.Device])
	}
	for id := entry.Low; id <= entry.High; id++ {
		m.ids[id].status = told
	}
	return nil
}

// ordered tells whether sends complete in order: a stream's do not have to once it
// was torn down or has sent something again.
func (m *Model) ordered() bool { return !m.config.Stream || !m.gone && !m.resent }

// inOrder judges the place of a notification: without loss sends complete in
// order, and both ways of reading begin at the head of the queue.
func (m *Model) inOrder(entry notify.Notification) error {
	if !m.ordered() {
		return nil
	}
	for id, send := range m.ids[:entry.Low] {
		if send.status != told {
			return violation("Z35", "%v (by %s) came before the notification of send %d: that one is lost, or the order of the sends is", entry, entry.Way, id)
		}
	}
	return nil
}

// reason is the rule by which a send is not to be notified yet, and why says so.
func (m *Model) reason(id int) string {
	if m.held && !m.inChunks(id) {
		return "Z3A"
	}
	return "Z36"
}

func (m *Model) why(id int) string {
	switch {
	case m.inChunks(id):
		return fmt.Sprintf("the datagram of send %d is not even complete", id)
	case m.held:
		return fmt.Sprintf("the device has not given the buffer of send %d back", id)
	}
	return fmt.Sprintf("send %d is not acknowledged", id)
}

// Finish judges the end of a sequence: nothing is under way, everything was read.
func (m *Model) Finish() error {
	var missing []string
	for id, send := range m.ids {
		if send.status != told {
			missing = append(missing, fmt.Sprint(id))
		}
	}
	if missing != nil {
		return violation("Z30", "of %d sends these were never notified: %s; their buffers are lost to the application", len(m.ids), strings.Join(missing, ", "))
	}
	return nil
}
