// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDuplicateKeepsContentAndDropsZeros(t *testing.T) {
	const size = 32 << 20
	source, err := newMemoryFile("source", size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	page := bytes.Repeat([]byte{7}, pageSize)
	for _, offset := range []int64{0, 3 * pageSize, copyChunk - pageSize, copyChunk, size - pageSize} {
		if _, err := source.WriteAt(page, offset); err != nil {
			t.Fatal(err)
		}
	}
	// Written, but zeros, and a page of which only the last byte is not.
	if _, err := source.WriteAt(make([]byte, pageSize), 10*pageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := source.WriteAt([]byte{1}, 12*pageSize-1); err != nil {
		t.Fatal(err)
	}

	copied, bytesLeft, err := duplicate(source, "copy", size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = copied.Close() }()
	if want := int64(6 * pageSize); bytesLeft != want {
		t.Errorf("%d bytes in the copy, want %d", bytesLeft, want)
	}
	read := func(file io.ReaderAt) []byte {
		content, err := io.ReadAll(io.NewSectionReader(file, 0, size))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	if !bytes.Equal(read(source), read(copied)) {
		t.Error("the copy differs")
	}
}

func TestSealedSnapshotCannotBeChanged(t *testing.T) {
	file, err := newMemoryFile("saved", pageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if err := seal(file); err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte{1}, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write gives %v, want EPERM", err)
	}
	again, err := reopen(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if content, err := io.ReadAll(again); err != nil || len(content) != pageSize {
		t.Errorf("read %d bytes, %v", len(content), err)
	}
}
