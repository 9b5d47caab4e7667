// SPDX-License-Identifier: BSD-3-Clause

package model

import "fmt"

// Socket is a connected sender with SO_ZEROCOPY set, and its peer.
//
// An error of a method is a *Violation where the socket's own checks found one,
// such as other data at the receiver than was sent. Anything else means that the
// sequence could not be carried out.
type Socket interface {
	// Do carries out an operation.
	Do(Operation) (Outcome, error)
	// Settle waits until everything sent has been received and acknowledged and
	// every buffer is back from the device. It is called only when nothing is
	// in the way of that. Received tells whether there is a receiver.
	Settle(received bool) error
	// Pending tells whether poll reports POLLERR now. Await waits until it does
	// so for an entry of the error queue, not for an error of the connection,
	// and tells whether it did.
	Pending() (bool, error)
	Await() (bool, error)
	// Close ends the sequence, whatever state it is in.
	Close()
}

// Run carries out the operations that are applicable on a fresh socket, each
// followed by a look at what must be true then, and at the end sees to it that
// every send is notified. It returns what was carried out.
func Run(config Config, socket Socket, operations []Operation) ([]Operation, error) {
	r := &run{model: New(config), socket: socket}
	for _, op := range operations {
		if !r.model.Applicable(op) {
			continue
		}
		r.done = append(r.done, op)
		if err := r.step(op); err != nil {
			return r.done, err
		}
	}
	return r.done, r.finish()
}

type run struct {
	model  *Model
	socket Socket
	done   []Operation
}

func (r *run) step(op Operation) error {
	outcome, err := r.socket.Do(op)
	if err != nil {
		return err
	}
	if err := r.model.Apply(op, outcome); err != nil {
		return err
	}
	if op.Kind == Read && op.Count == 0 {
		if err := r.awaitDue(); err != nil {
			return err
		}
	}
	if r.model.Flowing() {
		if err := r.socket.Settle(!r.model.Gone()); err != nil {
			return err
		}
		r.model.Settled()
	}
	return r.poll()
}

// awaitDue reads on until every notification that is due has come.
func (r *run) awaitDue() error {
	for r.model.Due() > 0 {
		if there, err := r.socket.Await(); err != nil || !there {
			return orViolation(err, r.lost())
		}
		read := Operation{Kind: Read}
		outcome, err := r.socket.Do(read)
		if err != nil {
			return err
		}
		if err := r.model.Apply(read, outcome); err != nil {
			return err
		}
	}
	return nil
}

// poll compares POLLERR with what is in the queue.
func (r *run) poll() error {
	switch {
	case r.model.Gone():
		// An error of the connection raises POLLERR too.
	case r.model.MustHold():
		if there, err := r.socket.Await(); err != nil || !there {
			return orViolation(err, r.lost())
		}
	case !r.model.MayHold():
		if there, err := r.socket.Pending(); err != nil || there {
			return orViolation(err, violation("Z40", "poll reports POLLERR, and nothing can be in the error queue: whoever waits for it spins"))
		}
	}
	return nil
}

func (r *run) lost() error {
	return violation("Z30", "%d notifications and %d timestamps must be in the error queue, and it is empty: the buffers are lost to the application",
		r.model.Due(), r.model.unreadStamps())
}

func orViolation(err, violation error) error {
	if err != nil {
		return err
	}
	return violation
}

// finish takes away what is in the way of the data, and reads what is left.
func (r *run) finish() error {
	for _, op := range []Operation{{Kind: Unhold}, {Kind: Acknowledge}, {Kind: Uncork}} {
		if !r.model.Applicable(op) {
			continue
		}
		if err := r.step(op); err != nil {
			return fmt.Errorf("at the end: %w", err)
		}
	}
	for {
		read := Operation{Kind: Read}
		outcome, err := r.socket.Do(read)
		if err != nil {
			return err
		}
		if err := r.model.Apply(read, outcome); err != nil {
			return fmt.Errorf("at the end: %w", err)
		}
		if r.model.Untold() == 0 {
			return nil
		}
		if there, err := r.socket.Await(); err != nil || !there {
			return fmt.Errorf("at the end: %w", orViolation(err, r.model.Finish()))
		}
	}
}
