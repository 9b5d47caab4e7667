// SPDX-License-Identifier: BSD-3-Clause

package vnet_test

import (
	"fmt"
	"testing"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/internal/fakeguest"
)

// BenchmarkTransmit measures the whole way of a frame: from a driver that offers
// 32 at once, to one that takes them and refills its ring.
// One round is 32 frames.
func BenchmarkTransmit(b *testing.B) {
	for _, length := range []int{64, 1448, 60_000} {
		b.Run(fmt.Sprintf("%d bytes", length), func(b *testing.B) {
			n, err := vnet.New(vnet.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer n.Close()
			var guests [2]*fakeguest.Guest
			for i, port := range []nic.Port{nic.NIC0, nic.NIC1} {
				if guests[i], err = fakeguest.Connect(n.Socket(port), fakeguest.Options{RingSize: 1024}); err != nil {
					b.Fatal(err)
				}
				defer guests[i].Close()
				if err := guests[i].Barrier(); err != nil {
					b.Fatal(err)
				}
			}
			data, headers := fakeguest.Build(fakeguest.Packet{Payload: make([]byte, length)})
			h := frame.Header{Flags: frame.NeedsChecksum, ChecksumStart: uint16(headers - 20), ChecksumOffset: 16}
			header := make([]byte, frame.HeaderSize)
			h.Encode(header, 0)
			transmit := guests[0].Rings[fakeguest.TransmitRing]
			receive := guests[1].Rings[fakeguest.ReceiveRing]

			// The driver's part is as cheap as can be: the same chains, never
			// looked at and offered again as they are.
			const batch = 32
			var heads []uint16
			for range batch {
				head, _, err := guests[0].Enqueue(header, data[:headers], data[headers:])
				if err != nil {
					b.Fatal(err)
				}
				heads = append(heads, head)
			}
			round := func() {
				transmit.Notify()
				for range batch {
					if _, _, err := transmit.WaitUsed(); err != nil {
						b.Fatal(err)
					}
				}
				for {
					buffer, _, ok := receive.Used()
					if !ok {
						break
					}
					receive.Offer(buffer)
				}
				receive.Notify()
			}
			round()
			frames := 0
			b.SetBytes(batch * int64(length))
			b.ReportAllocs()
			for b.Loop() {
				for _, head := range heads {
					transmit.Offer(head)
				}
				round()
				frames += batch
			}
			b.ReportMetric(float64(frames)/b.Elapsed().Seconds(), "frames/s")
			if stats := n.Stats(nic.NIC1); stats.NoBuffers != 0 {
				b.Errorf("%+v", stats)
			}
		})
	}
}
