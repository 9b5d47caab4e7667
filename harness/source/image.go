// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/zcvet/zcvet/harness/fault"
)

// image takes a kernel that is built already.
func (r *resolver) image(ctx context.Context, name string) (*Kernel, error) {
	absolute, err := filepath.Abs(name)
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel image: %w", err)
	}
	info, err := os.Stat(absolute)
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel image: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Usage, "kernel image: %s is not a file", name)
	}
	sum, err := r.hashFile(ctx, absolute)
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel image: %w", err)
	}
	version, err := imageVersion(absolute)
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel image: %s: %w", name, err).
			WithAdvice("give a bzImage or a vmlinux")
	}
	return &Kernel{Version: version, Source: "image " + name, ID: "image-" + sum[:16], Image: absolute}, nil
}

// Offsets in a bzImage: Documentation/arch/x86/boot.rst.
const (
	bootMagicAt   = 0x202
	bootVersionAt = 0x20e
	setupAt       = 0x200
)

var (
	banner       = regexp.MustCompile(`Linux version (\d+\.\d+\S*)`)
	firstVersion = regexp.MustCompile(`^(\d+\.\d+[^\s\x00]*)`)
)

// imageVersion finds the release in a bzImage's header, or in the banner of an
// uncompressed kernel; empty when an ELF file has no banner.
func imageVersion(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	head := make([]byte, 0x8000) // the setup code of a bzImage is shorter
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	head = head[:n]
	if len(head) > bootVersionAt+2 && bytes.Equal(head[bootMagicAt:bootMagicAt+4], []byte("HdrS")) {
		at := int(binary.LittleEndian.Uint16(head[bootVersionAt:])) + setupAt
		if at < len(head) {
			if m := firstVersion.FindSubmatch(head[at:]); m != nil {
				return string(m[1]), nil
			}
		}
		return "", nil
	}
	if !bytes.HasPrefix(head, []byte("\x7fELF")) {
		return "", errors.New("is no kernel image")
	}
	return findBanner(io.MultiReader(bytes.NewReader(head), file))
}

// findBanner searches a stream in pieces that overlap by more than a banner.
func findBanner(stream io.Reader) (string, error) {
	const overlap = 256
	piece := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := io.ReadFull(stream, piece[kept:])
		text := piece[:kept+n]
		if m := banner.FindSubmatch(text); m != nil {
			return string(m[1]), nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return "", nil
			}
			return "", err
		}
		kept = copy(piece, text[len(text)-overlap:])
	}
}
