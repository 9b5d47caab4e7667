// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// Binary is a hash of what is loaded of the kernel when it boots: equal hashes are
// equal kernels at run time. The build id, which the linker makes of the line
// tables too, is left out, so that a series which moves lines about, or changes
// what is not compiled, gives the same hash. An image: kernel that is no ELF file
// is hashed as a whole.
func (k *Kernel) Binary() (string, error) {
	file, err := os.Open(k.Boot)
	if err != nil {
		return "", fmt.Errorf("hash the kernel: %w", err)
	}
	defer file.Close()
	hash := sha256.New()
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := file.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("hash the kernel: %w", err)
	}
	if !isELF(magic) {
		if _, err := io.Copy(hash, file); err != nil {
			return "", fmt.Errorf("hash the kernel: %w", err)
		}
		return hex.EncodeToString(hash.Sum(nil)), nil
	}
	image, err := elf.NewFile(file)
	if err != nil {
		return "", fmt.Errorf("hash the kernel: %s: %w", k.Boot, err)
	}
	fmt.Fprintf(hash, "entry %#x\n", image.Entry)
	for _, section := range image.Sections {
		if section.Flags&elf.SHF_ALLOC == 0 {
			continue
		}
		fmt.Fprintf(hash, "section %q %#x %#x %d\n", section.Name, section.Addr, section.Flags, section.Size)
		if section.Type == elf.SHT_NOBITS {
			continue
		}
		data, err := section.Data()
		if err != nil {
			return "", fmt.Errorf("hash the kernel: %s: section %s: %w", k.Boot, section.Name, err)
		}
		if section.Type == elf.SHT_NOTE {
			blankBuildID(data, image.ByteOrder)
		}
		hash.Write(data)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// blankBuildID zeroes the build ids among the notes of a section.
func blankBuildID(notes []byte, order binary.ByteOrder) {
	const buildID = 3 // NT_GNU_BUILD_ID
	for len(notes) >= 12 {
		name := uint64(order.Uint32(notes))
		description := uint64(order.Uint32(notes[4:]))
		kind := order.Uint32(notes[8:])
		end := 12 + align4(name) + align4(description)
		if end > uint64(len(notes)) {
			return
		}
		if kind == buildID && name == 4 && string(notes[12:16]) == "GNU\x00" {
			clear(notes[12+align4(name) : end])
		}
		notes = notes[end:]
	}
}
