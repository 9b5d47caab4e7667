// SPDX-License-Identifier: BSD-3-Clause

package fakeguest

import (
	"sync/atomic"
	"unsafe"
)

// The index of a ring is the upper half of its first word, which is aligned
// here. The lower half, the flags, is the same side's.

func word(ring []byte) *uint32 { return (*uint32)(unsafe.Pointer(&ring[0])) }

func load16(ring []byte) uint16 { return uint16(atomic.LoadUint32(word(ring)) >> 16) }

func store16(ring []byte, index uint16) {
	flags := atomic.LoadUint32(word(ring)) & 0xffff
	atomic.StoreUint32(word(ring), uint32(index)<<16|flags)
}
