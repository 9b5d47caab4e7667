// SPDX-License-Identifier: BSD-3-Clause

package trace

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// Pack makes a record small enough to be sent. Unpack undoes it.
func Pack(region []byte) ([]byte, error) {
	if len(region) != Size {
		return nil, ErrNone
	}
	region = slices.Clone(region)
	for _, s := range segments {
		// What was recorded about the cases before is still there.
		used := binary.LittleEndian.Uint32(region[s.start:])
		clear(region[s.start+segmentHeader:][min(int64(used), int64(s.size-segmentHeader)) : s.size-segmentHeader])
	}
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(region); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}

// Unpack returns the record that Pack was given.
func Unpack(packed []byte) ([]byte, error) {
	region := make([]byte, Size)
	if _, err := io.ReadFull(flate.NewReader(bytes.NewReader(packed)), region); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	return region, nil
}
