// SPDX-License-Identifier: BSD-3-Clause

package vnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/zcvet/zcvet/guest/nic"
)

// Call does what a case asks for by one of the methods of package nic, and
// returns the result the method names, nil for none. Methods whose argument has a
// port accept nic.AllNICs, but for nic.MethodFrames and a nic.Release with an
// order. An error is for the case to report; only if it is that of Err has the
// Network ended, too. Ctx bounds Config.OnSetLink, the only thing a call waits
// for.
func (n *Network) Call(ctx context.Context, method string, args json.RawMessage) (any, error) {
	result, err := n.call(ctx, method, args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return result, nil
}

func (n *Network) call(ctx context.Context, method string, args json.RawMessage) (any, error) {
	switch method {
	case nic.MethodReset:
		return nil, n.Reset(ctx)
	case nic.MethodSetLink:
		wanted, err := decode[nic.SetLink](args)
		if err != nil {
			return nil, err
		}
		return nil, n.setLink(ctx, wanted)
	case nic.MethodHold:
		return handle(n, args, n.setHold)
	case nic.MethodRelease:
		return handle(n, args, n.releaseHeld)
	case nic.MethodLateDMA:
		return handle(n, args, n.setLateDMA)
	case nic.MethodAddRule:
		return handle(n, args, func(wanted nic.Rule) (any, error) {
			added, err := n.addRule(wanted)
			return added, refused(err)
		})
	case nic.MethodRemoveRule:
		return handle(n, args, func(wanted nic.RemoveRule) (any, error) {
			r, err := n.ruleNumbered(wanted.Rule)
			if err != nil {
				return nil, refused(err)
			}
			return n.removeRule(r)
		})
	case nic.MethodRuleStatus:
		return handle(n, args, func(wanted nic.RemoveRule) (any, error) {
			r, err := n.ruleNumbered(wanted.Rule)
			if err != nil {
				return nil, refused(err)
			}
			return r.status(), nil
		})
	case nic.MethodFrames:
		return handle(n, args, func(wanted nic.FramesQuery) (any, error) {
			p := n.find(wanted.Port)
			if p == nil {
				return nil, refused(fmt.Errorf("no port %q", wanted.Port))
			}
			return p.query(wanted.Since, wanted.Match, replyBytes), nil
		})
	case nic.MethodPcapComment:
		return handle(n, args, func(wanted nic.PcapComment) (any, error) {
			n.capture.comment(wanted.Text)
			return nil, nil
		})
	}
	return nil, errors.New("no such method")
}

// refusal is an error of the caller, which leaves the network alive.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }

func refused(err error) error {
	if err == nil {
		return nil
	}
	return &refusal{err}
}

func decode[T any](args json.RawMessage) (T, error) {
	var wanted T
	decoder := json.NewDecoder(bytes.NewReader(args))
	// A misspelt field would silently make another call of it.
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&wanted); err != nil {
		return wanted, fmt.Errorf("argument: %w", err)
	}
	return wanted, nil
}

// handle decodes the argument and runs f with the mutex held.
func handle[T any](n *Network, args json.RawMessage, f func(T) (any, error)) (any, error) {
	wanted, err := decode[T](args)
	if err != nil {
		return nil, err
	}
	var result any
	var refusalErr error
	err = n.locked(func() error {
		var err error
		result, err = f(wanted)
		if refusal, ok := errors.AsType[*refusal](err); ok {
			refusalErr = refusal.err
			return nil
		}
		return err
	})
	return result, errors.Join(err, refusalErr)
}

// chosen returns the ports that a name stands for.
func (n *Network) chosen(name nic.Port) ([]*port, error) {
	if name == nic.AllNICs {
		return n.ports, nil
	}
	if p := n.find(name); p != nil {
		return []*port{p}, nil
	}
	return nil, refused(fmt.Errorf("no port %q", name))
}

func (n *Network) setHold(wanted nic.Hold) (any, error) {
	ports, err := n.chosen(wanted.Port)
	if err != nil {
		return nil, err
	}
	for _, p := range ports {
		p.hold = wanted.On
		if !wanted.On {
			if _, err := p.release(p.allHeld()); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

func (n *Network) setLateDMA(wanted nic.LateDMA) (any, error) {
	ports, err := n.chosen(wanted.Port)
	if err != nil {
		return nil, err
	}
	for _, p := range ports {
		p.late = wanted.On
	}
	return nil, nil
}

func (n *Network) releaseHeld(wanted nic.Release) (any, error) {
	ports, err := n.chosen(wanted.Port)
	if err != nil {
		return nil, err
	}
	if len(ports) > 1 && len(wanted.Order) > 0 {
		return nil, refused(errors.New("an order is for one port"))
	}
	var total nic.Released
	for _, p := range ports {
		positions, err := p.wantedHeld(wanted)
		if err != nil {
			return nil, refused(err)
		}
		released, err := p.release(positions)
		if err != nil {
			return nil, err
		}
		total.Released += released
		total.Held += len(p.held)
	}
	return total, nil
}

// setLink changes the state of the wire first and then, so that no frame crosses
// a link that a guest has seen go down, what the guest sees; upwards the other
// way round.
func (n *Network) setLink(ctx context.Context, wanted nic.SetLink) error {
	ports, err := n.chosen(wanted.Port)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if !wanted.Up {
			if err := n.setWire(p, false); err != nil {
				return err
			}
		}
		if n.config.OnSetLink != nil {
			if err := n.config.OnSetLink(ctx, p.name, wanted.Up); err != nil {
				return fmt.Errorf("link of %s: %w", p.name, err)
			}
		}
		if wanted.Up {
			if err := n.setWire(p, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Network) setWire(p *port, up bool) error {
	return n.locked(func() error {
		p.linkUp = up
		return nil
	})
}

// Reset takes the Network back to where it was when it was new, for the next
// case: rules are gone and what waited in them goes on, held buffers are given
// back, links are up, late DMA is off, descriptor logs are empty and count from 0
// again. Frames that wait for receive buffers, the capture and the statistics
// stay.
func (n *Network) Reset(ctx context.Context) error {
	var down []*port
	err := n.locked(func() error {
		rules := n.rules
		n.rules = nil
		for _, p := range n.ports {
			p.hold, p.late = false, false
			if !p.linkUp {
				down = append(down, p)
			}
		}
		for _, r := range rules {
			if err := n.goOn(r); err != nil {
				return err
			}
		}
		for _, p := range n.ports {
			if _, err := p.release(p.allHeld()); err != nil {
				return err
			}
		}
		for _, p := range n.ports {
			p.log = frameLog{}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range down {
		if err := n.setLink(ctx, nic.SetLink{Port: p.name, Up: true}); err != nil {
			return err
		}
	}
	return nil
}

// Stats returns what a port has counted, zero for one the Network does not have.
func (n *Network) Stats(name nic.Port) Stats {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if p := n.find(name); p != nil {
		return p.stats
	}
	return Stats{}
}
