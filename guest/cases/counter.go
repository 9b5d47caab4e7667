// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"golang.org/x/sys/unix"
)

var _ = add(Case{
	Name:     "counter/consecutive-ids",
	Doc:      "each successful zerocopy send takes one id, counted from 0 without a gap",
	Covers:   []string{"Z10", "Z30"},
	Protos:   IP,
	Families: BothFamilies,
	Links:    EveryLink,
}, func(t *T) {
	pair := t.Pair()
	const sends = 16
	for i := range sends {
		data := t.Payload(1000, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
	}
	pair.Sender.Collect(sends)
})
