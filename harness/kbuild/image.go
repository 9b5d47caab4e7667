// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/source"
)

// maxImage bounds what an image may unpack to, in bytes. A distribution's vmlinux
// takes some 70 MB, one with debug information below 1 GB.
const maxImage = 1 << 30

// Image makes a Kernel of one that the user has built: a vmlinux, or a bzImage from
// which the vmlinux is unpacked. A bzImage that cannot be unpacked, or whose
// vmlinux has no PVH entry, is booted as it is.
func Image(ctx context.Context, kernel *source.Kernel, options Options) (*Kernel, error) {
	content, err := os.ReadFile(kernel.Image)
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel image: %w", err)
	}
	digest := sha256.Sum256(content)
	id := hex.EncodeToString(digest[:])[:24]
	dir := options.Cache
	if found, err := load(ctx, dir, id); found != nil || err != nil {
		return found, err
	}
	unlock, err := dir.Lock(ctx, cache.Kernels, id)
	if err != nil {
		return nil, err
	}
	err = keepImage(ctx, dir, id, kernel.Image, content)
	unlock()
	if err != nil {
		return nil, err
	}
	found, err := load(ctx, dir, id)
	if found == nil && err == nil {
		err = fault.New(fault.Infrastructure, "kernel %s is gone from the cache right after it was put there", id)
	}
	return found, err
}

func keepImage(ctx context.Context, dir *cache.Dir, id, name string, content []byte) error {
	if dir.Has(cache.Kernels, id) {
		return nil
	}
	vmlinux := content
	if !isELF(content) {
		payload, err := payload(content)
		if err != nil {
			return fault.New(fault.Usage, "%s: %w", name, err).WithAdvice("give a vmlinux or a bzImage for x86-64")
		}
		if vmlinux, err = decompress(ctx, payload); err != nil || !isELF(vmlinux) {
			vmlinux = nil
		}
	}
	boot := content
	if hasPVHEntry(vmlinux) {
		boot = vmlinux
	} else if isELF(content) {
		return fault.New(fault.Usage, "%s has no PVH entry, which booting a vmlinux needs", name).
			WithAdvice("give the bzImage, or build with CONFIG_PVH=y")
	}
	stage, err := dir.Stage(cache.Kernels, id)
	if err != nil {
		return err
	}
	defer stage.Discard()
	if vmlinux != nil {
		if err := os.WriteFile(filepath.Join(stage.Dir, vmlinuxFile), vmlinux, 0o644); err != nil {
			return dir.Explain("keep the kernel image", err)
		}
	}
	if err := os.WriteFile(filepath.Join(stage.Dir, bootFile), boot, 0o644); err != nil {
		return dir.Explain("keep the kernel image", err)
	}
	kernel := &Kernel{ID: id}
	kernel.Release, kernel.Compiler = banner(vmlinux)
	if kernel.Release == "" {
		kernel.Release = setupVersion(content)
	}
	return keepDescription(dir, stage, kernel)
}

func isELF(content []byte) bool { return bytes.HasPrefix(content, []byte(elf.ELFMAG)) }

// Offsets in the setup header of a bzImage; Documentation/arch/x86/boot.rst.
const (
	setupSectors  = 0x1f1 // u8, 0 means 4
	setupMagic    = 0x202 // "HdrS"
	setupProtocol = 0x206 // u16
	kernelVersion = 0x20e // u16, offset of a string, less 0x200
	payloadOffset = 0x248 // u32, from the end of the set-up code; protocol 2.08
	payloadLength = 0x24c // u32
	setupEnd      = 0x250
)

// payload returns the compressed vmlinux within a bzImage.
func payload(image []byte) ([]byte, error) {
	if len(image) < setupEnd || string(image[setupMagic:setupMagic+4]) != "HdrS" {
		return nil, errors.New("neither an ELF file nor a bzImage")
	}
	little := binary.LittleEndian
	if protocol := little.Uint16(image[setupProtocol:]); protocol < 0x208 {
		return nil, fmt.Errorf("boot protocol %d.%02d is too old", protocol>>8, protocol&0xff)
	}
	sectors := uint64(image[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(little.Uint32(image[payloadOffset:]))
	end := start + uint64(little.Uint32(image[payloadLength:]))
	if end > uint64(len(image)) || end-start < 8 {
		return nil, errors.New("the bzImage is cut short")
	}
	return image[start:end], nil
}

// decompress unpacks the payload. The build appends the unpacked size to it, 32
// bits, except that gzip has it at its end anyway.
func decompress(ctx context.Context, payload []byte) ([]byte, error) {
	if len(payload) < 8 {
		return nil, io.ErrUnexpectedEOF
	}
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	if size > maxImage {
		return nil, fmt.Errorf("claims to unpack to %d bytes", size)
	}
	packed := payload[:len(payload)-4]
	var reader io.Reader
	var err error
	switch magic := payload[:6]; {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		reader, err = gzip.NewReader(bytes.NewReader(payload))
	case bytes.HasPrefix(magic, []byte("BZh")):
		reader = bzip2.NewReader(bytes.NewReader(packed))
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		var decoder *zstd.Decoder
		// One goroutine, and no window larger than what may come out.
		decoder, err = zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxImage))
		if err == nil {
			defer decoder.Close()
			reader = decoder
		}
	case bytes.HasPrefix(magic, []byte("\x02\x21\x4c\x18")):
		reader = lz4.NewReader(bytes.NewReader(packed))
	case bytes.HasPrefix(magic, []byte("\x5d\x00\x00")):
		reader, err = lzma.NewReader(bytes.NewReader(packed))
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		// The kernel packs with the x86 filter, which no Go library undoes.
		return decompressXZ(ctx, packed, size)
	default:
		return nil, fmt.Errorf("unknown compression % x", magic)
	}
	if err != nil {
		return nil, err
	}
	return readAll(reader, size)
}

// readAll reads exactly size bytes, without trusting the size beforehand.
func readAll(reader io.Reader, size int64) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(reader, size))
	if int64(len(content)) < size {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return content, nil
}

func decompressXZ(ctx context.Context, packed []byte, size int64) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a stream that goes on beyond its size is not waited for
	command := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--single-stream")
	command.Env = environment()
	command.Stdin = bytes.NewReader(packed)
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	content, err := readAll(output, size)
	cancel()
	_ = command.Wait() // its status is known: it was cancelled, or the content is short
	return content, err
}

// hasPVHEntry looks for the note that tells QEMU where to enter; ABI of Xen's
// XEN_ELFNOTE_PHYS32_ENTRY.
func hasPVHEntry(vmlinux []byte) bool {
	if !isELF(vmlinux) {
		return false
	}
	file, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return false
	}
	const physical32Entry = 18
	for _, program := range file.Progs {
		if program.Type != elf.PT_NOTE || program.Filesz > uint64(len(vmlinux)) {
			continue
		}
		notes, err := io.ReadAll(program.Open())
		if err != nil {
			continue
		}
		for len(notes) >= 12 {
			name := uint64(file.ByteOrder.Uint32(notes))
			description := uint64(file.ByteOrder.Uint32(notes[4:]))
			kind := file.ByteOrder.Uint32(notes[8:])
			end := 12 + align4(name) + align4(description)
			if end > uint64(len(notes)) {
				break
			}
			if kind == physical32Entry && name == 4 && string(notes[12:16]) == "Xen\x00" {
				return true
			}
			notes = notes[end:]
		}
	}
	return false
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }

// bannerPattern is what /proc/version starts with, "Linux version 6.12.95
// (user@host) (gcc (Debian 12.2.0) 12.2.0, GNU ld …) #1 …".
var bannerPattern = regexp.MustCompile(`Linux version (\d+\.\d+[^\s%]{0,200}) \([^)\n]{0,200}\) \(([^,\n]{1,200}), `)

func banner(vmlinux []byte) (release, compiler string) {
	match := bannerPattern.FindSubmatch(vmlinux)
	if match == nil {
		return "", ""
	}
	return string(match[1]), string(match[2])
}

// setupVersion reads the release from a bzImage's set-up code.
func setupVersion(image []byte) string {
	if len(image) < setupEnd {
		return ""
	}
	start := int(binary.LittleEndian.Uint16(image[kernelVersion:])) + 0x200
	if start >= len(image) {
		return ""
	}
	text := image[start:min(start+200, len(image))]
	end := bytes.IndexAny(text, " \x00")
	if end < 0 {
		return ""
	}
	return string(text[:end])
}
