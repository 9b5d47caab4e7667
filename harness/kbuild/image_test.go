// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/source"
)

const bannerText = "Linux version 6.12.95-test (user@host) (gcc (Debian 12.2.0-14) 12.2.0, GNU ld 2.40) #1 SMP\n"

// elfKernel is the smallest ELF file that passes for a vmlinux.
func elfKernel(t testing.TB, withNote bool) []byte {
	t.Helper()
	var note bytes.Buffer
	write := func(to *bytes.Buffer, values ...any) {
		t.Helper()
		for _, value := range values {
			if err := binary.Write(to, binary.LittleEndian, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Another note first, whose name is padded.
	write(&note, uint32(2), uint32(4), uint32(1), []byte("A\x00\x00\x00"), uint32(7))
	if withNote {
		write(&note, uint32(4), uint32(8), uint32(18), []byte("Xen\x00"), uint64(0x1000123))
	}
	const headerSize, programSize = 64, 56
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: headerSize, Ehsize: headerSize, Phentsize: programSize, Phnum: 1,
	}
	copy(header.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	program := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: headerSize + programSize, Filesz: uint64(note.Len()), Memsz: uint64(note.Len()), Align: 4}
	var file bytes.Buffer
	write(&file, header, program, note.Bytes(), []byte(bannerText))
	return file.Bytes()
}

// bzImage wraps a payload as the kernel's build does.
func bzImage(payload []byte) []byte {
	const sectors = 2
	image := make([]byte, (sectors+1)*512)
	image[setupSectors] = sectors
	copy(image[setupMagic:], "HdrS")
	little := binary.LittleEndian
	little.PutUint16(image[setupProtocol:], 0x20f)
	little.PutUint16(image[kernelVersion:], 0x100)
	copy(image[0x300:], "6.12.95-setup (user@host) #1\x00")
	const gap = 32 // the decompressor, in a real one
	little.PutUint32(image[payloadOffset:], gap)
	little.PutUint32(image[payloadLength:], uint32(len(payload)))
	image = append(image, make([]byte, gap)...)
	return append(append(image, payload...), "trailer"...)
}

// compressors pack as scripts/Makefile.lib does: the size is appended, except
// where the format has it at its end.
var compressors = map[string]func(t *testing.T, content []byte) []byte{
	"gzip": func(t *testing.T, content []byte) []byte {
		var packed bytes.Buffer
		writer := gzip.NewWriter(&packed)
		finish(t, writer, content)
		return packed.Bytes()
	},
	"zstd": func(t *testing.T, content []byte) []byte {
		var packed bytes.Buffer
		writer, err := zstd.NewWriter(&packed)
		if err != nil {
			t.Fatal(err)
		}
		finish(t, writer, content)
		return withSize(packed.Bytes(), content)
	},
	"lz4": func(t *testing.T, content []byte) []byte {
		var packed bytes.Buffer
		writer := lz4.NewWriter(&packed)
		if err := writer.Apply(lz4.LegacyOption(true)); err != nil {
			t.Fatal(err)
		}
		finish(t, writer, content)
		return withSize(packed.Bytes(), content)
	},
	"xz":    viaTool("xz", "--check=crc32", "--x86", "--lzma2=dict=1MiB", "--stdout"),
	"lzma":  viaTool("xz", "--format=lzma", "--stdout"),
	"bzip2": viaTool("bzip2", "--stdout"),
}

func finish(t *testing.T, writer io.WriteCloser, content []byte) {
	t.Helper()
	if _, err := writer.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
}

func withSize(packed, content []byte) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(len(content)))
}

func viaTool(name string, args ...string) func(*testing.T, []byte) []byte {
	return func(t *testing.T, content []byte) []byte {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
		command := exec.Command(name, args...)
		command.Stdin = bytes.NewReader(content)
		packed, err := command.Output()
		if err != nil {
			t.Fatal(err)
		}
		return withSize(packed, content)
	}
}

func image(t *testing.T, content []byte) (*Kernel, error) {
	t.Helper()
	store, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return Image(t.Context(), &source.Kernel{Image: file}, Options{Cache: store})
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestImageUnpacks(t *testing.T) {
	vmlinux := elfKernel(t, true)
	for name, compress := range compressors {
		t.Run(name, func(t *testing.T) {
			kernel, err := image(t, bzImage(compress(t, vmlinux)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readFile(t, kernel.Boot), vmlinux) || !bytes.Equal(readFile(t, kernel.Vmlinux), vmlinux) {
				t.Error("it boots something else than what was packed")
			}
			if kernel.Release != "6.12.95-test" || kernel.Compiler != "gcc (Debian 12.2.0-14) 12.2.0" {
				t.Errorf("release %q, compiler %q", kernel.Release, kernel.Compiler)
			}
		})
	}
}

func TestImageOfOtherKinds(t *testing.T) {
	gzipped := func(content []byte) []byte { return compressors["gzip"](t, content) }
	withoutEntry := elfKernel(t, false)
	for _, test := range []struct {
		name    string
		content []byte
		vmlinux []byte // nil if none can be had
		release string
	}{
		{"vmlinux", elfKernel(t, true), elfKernel(t, true), "6.12.95-test"},
		{"bzImage without a PVH entry", bzImage(gzipped(withoutEntry)), withoutEntry, "6.12.95-test"},
		{"bzImage packed in an unknown way", bzImage([]byte("unknown compression")), nil, "6.12.95-setup"},
		{"bzImage with a broken payload", bzImage([]byte("\x1f\x8b\x08 broken")), nil, "6.12.95-setup"},
	} {
		t.Run(test.name, func(t *testing.T) {
			kernel, err := image(t, test.content)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readFile(t, kernel.Boot), test.content) {
				t.Error("it does not boot as it is")
			}
			if (kernel.Vmlinux != "") != (test.vmlinux != nil) {
				t.Errorf("vmlinux %q", kernel.Vmlinux)
			} else if test.vmlinux != nil && !bytes.Equal(readFile(t, kernel.Vmlinux), test.vmlinux) {
				t.Error("another vmlinux than was packed")
			}
			if kernel.Release != test.release {
				t.Errorf("release %q, want %q", kernel.Release, test.release)
			}
		})
	}
}

func TestImageRefuses(t *testing.T) {
	old := bzImage([]byte("payload, long enough"))
	old[setupProtocol] = 0x07
	for name, content := range map[string][]byte{
		"empty":                       {},
		"text":                        []byte("not a kernel"),
		"bzImage of an old protocol":  old,
		"bzImage cut short":           bzImage([]byte("payload, long enough"))[:(2+1)*512+40],
		"vmlinux without a PVH entry": elfKernel(t, false),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := image(t, content); fault.Of(err) != fault.Usage {
				t.Errorf("got %v of class %v, want a usage fault", err, fault.Of(err))
			}
		})
	}
	if _, err := Image(t.Context(), &source.Kernel{Image: filepath.Join(t.TempDir(), "missing")}, Options{}); !errors.Is(err, os.ErrNotExist) || fault.Of(err) != fault.Usage {
		t.Errorf("a missing file: %v", err)
	}
}

func TestDecompressBelievesNoSize(t *testing.T) {
	packed := compressors["zstd"](t, elfKernel(t, true))
	for _, size := range []uint32{1 << 20, 1<<32 - 1} {
		binary.LittleEndian.PutUint32(packed[len(packed)-4:], size)
		if content, err := decompress(t.Context(), packed); err == nil {
			t.Errorf("a size of %d gave %d bytes and no error", size, len(content))
		}
	}
}

// Images come from anywhere.
func FuzzImage(f *testing.F) {
	f.Add(elfKernel(f, true))
	f.Add(elfKernel(f, false))
	f.Add(bzImage([]byte("unknown compression")))
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	_, _ = writer.Write(elfKernel(f, true))
	_ = writer.Close()
	f.Add(bzImage(packed.Bytes()))
	f.Fuzz(func(t *testing.T, content []byte) {
		hasPVHEntry(content)
		banner(content)
		setupVersion(content)
		packed, err := payload(content)
		if err != nil {
			return
		}
		// A size that is honest about being large only takes time.
		if size := binary.LittleEndian.Uint32(packed[len(packed)-4:]); size > 1<<20 || bytes.HasPrefix(packed, []byte("\xfd7zXZ")) {
			return
		}
		if content, err := decompress(context.Background(), packed); err == nil && len(content) > 1<<20 {
			t.Errorf("%d bytes", len(content))
		}
	})
}
