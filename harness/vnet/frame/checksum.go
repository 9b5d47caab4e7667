// SPDX-License-Identifier: BSD-3-Clause

package frame

import (
	"encoding/binary"
	"math/bits"
)

// add adds data as big-endian 16-bit words to a one's complement sum (RFC 1071),
// with a last odd byte padded by zero. Sums of pieces may only be chained if all
// but the last are even in length.
//
// The sum is kept in 64 bits: one's complement addition does not care how wide
// the words are, as long as carries come back in at the low end.
func add(sum uint64, data []byte) uint64 {
	var carry uint64
	for len(data) >= 32 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(data[0:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(data[8:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(data[16:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(data[24:]), carry)
		data = data[32:]
	}
	for len(data) >= 8 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(data), carry)
		data = data[8:]
	}
	if len(data) > 0 {
		var tail [8]byte
		copy(tail[:], data)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(tail[:]), carry)
	}
	// A carry can ripple through a sum of all ones once more.
	sum, carry = bits.Add64(sum, 0, carry)
	sum += carry
	// Leave room at the top, so that callers may simply add words of their own.
	return sum>>32 + sum&0xffffffff
}

// fold returns the complement of the 16-bit sum, which is what goes into a
// header.
func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
