// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
)

// canary is the smallest guest that shows whether an accelerator runs guests: it
// turns on paging and long mode, checks that a model-specific register keeps its
// value, prints canarySong on the serial port and resets the machine. On hosts
// where KVM is only half there, one of these steps aborts or hangs.
//
// It is an ELF file with a PVH entry point, so QEMU loads it as it would a
// vmlinux.
func canary() []byte {
	const (
		base       = 0x100000
		pml4       = base + 0x1000
		pdpt       = base + 0x2000
		directory  = base + 0x3000
		data       = base + 0x800
		gdt        = data
		gdtPointer = data + 0x10
		idtPointer = data + 0x20 // zeros: any exception is a triple fault
		size       = 0x4000
	)
	image := make([]byte, size)
	put := func(address int, value uint64) { binary.LittleEndian.PutUint64(image[address-base:], value) }

	// One 2 MiB page maps the program onto itself.
	const present, large = 0x3, 0x83
	put(pml4, pdpt|present)
	put(pdpt, directory|present)
	put(directory, large)
	put(gdt+8, 0x00af9a000000ffff) // 64-bit code
	put(gdtPointer, gdt<<16|15)

	var code bytes.Buffer
	emit := func(instruction ...byte) { code.Write(instruction) }
	address := func(value uint32) []byte { return binary.LittleEndian.AppendUint32(nil, value) }

	emit(append([]byte{0xb8}, address(pml4)...)...)                   // mov eax, pml4
	emit(0x0f, 0x22, 0xd8)                                            // mov cr3, eax
	emit(0x0f, 0x20, 0xe0)                                            // mov eax, cr4
	emit(0x83, 0xc8, 0x20)                                            // or eax, PAE
	emit(0x0f, 0x22, 0xe0)                                            // mov cr4, eax
	emit(0xb9, 0x80, 0x00, 0x00, 0xc0)                                // mov ecx, IA32_EFER
	emit(0x0f, 0x32)                                                  // rdmsr
	emit(0x0d, 0x00, 0x01, 0x00, 0x00)                                // or eax, LME
	emit(0x0f, 0x30)                                                  // wrmsr
	emit(0x0f, 0x20, 0xc0)                                            // mov eax, cr0
	emit(0x0d, 0x00, 0x00, 0x00, 0x80)                                // or eax, PG
	emit(0x0f, 0x22, 0xc0)                                            // mov cr0, eax
	emit(append([]byte{0x0f, 0x01, 0x15}, address(gdtPointer)...)...) // lgdt [gdtPointer]
	emit(append([]byte{0xea}, address(uint32(base+code.Len()+7))...)...)
	emit(0x08, 0x00)                   // jmp 8:next instruction, which is 64-bit
	emit(0xb9, 0x02, 0x01, 0x00, 0xc0) // mov ecx, IA32_KERNEL_GS_BASE
	emit(0xb8, 0x78, 0x56, 0x34, 0x12) // mov eax, 0x12345678
	emit(0x31, 0xd2)                   // xor edx, edx
	emit(0x0f, 0x30)                   // wrmsr
	emit(0x31, 0xc0)                   // xor eax, eax
	emit(0x0f, 0x32)                   // rdmsr
	emit(0x3d, 0x78, 0x56, 0x34, 0x12) // cmp eax, 0x12345678
	emit(0x74, 0x03)                   // je over the halt
	emit(0xf4, 0xeb, 0xfd)             // hlt; jmp to it
	for _, letter := range []byte(canarySong + "\n") {
		emit(0x66, 0xba, 0xf8, 0x03) // mov dx, the serial port
		emit(0xb0, letter)           // mov al, letter
		emit(0xee)                   // out dx, al
	}
	emit(append([]byte{0x0f, 0x01, 0x1c, 0x25}, address(idtPointer)...)...) // lidt [idtPointer]
	emit(0xcc)                                                              // int3
	copy(image, code.Bytes())
	return pvhFile(image, base)
}

// canarySong is what a canary prints.
const canarySong = "zcvet: guests run"

// pvhFile wraps an image into an ELF file whose entry, at the start of the image,
// is named by the Xen note that QEMU looks for.
func pvhFile(image []byte, base uint64) []byte {
	const (
		headers     = 64
		noteOffset  = headers + 2*56
		imageOffset = 0x1000
		// XEN_ELFNOTE_PHYS32_ENTRY
		entryNote = 18
	)
	var note bytes.Buffer
	write := func(w *bytes.Buffer, values ...any) {
		for _, value := range values {
			// A bytes.Buffer takes everything of fixed size.
			_ = binary.Write(w, binary.LittleEndian, value)
		}
	}
	write(&note, uint32(4), uint32(8), uint32(entryNote), [4]byte{'X', 'e', 'n'}, base)

	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base, Phoff: headers, Ehsize: headers, Phentsize: 56, Phnum: 2, Shentsize: 64,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	size := uint64(len(image))
	var file bytes.Buffer
	write(&file, header,
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W | elf.PF_X),
			Off: imageOffset, Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: imageOffset,
		},
		elf.Prog64{
			Type: uint32(elf.PT_NOTE), Flags: uint32(elf.PF_R),
			Off: noteOffset, Vaddr: noteOffset, Paddr: noteOffset,
			Filesz: uint64(note.Len()), Memsz: uint64(note.Len()), Align: 4,
		},
		note.Bytes(), make([]byte, imageOffset-noteOffset-note.Len()), image)
	return file.Bytes()
}

// canaryFile returns the canary as a file in memory and a path under which QEMU
// finds it while the file is open.
func canaryFile() (*os.File, string, error) {
	file, err := newMemoryFile("canary", 0)
	if err != nil {
		return nil, "", err
	}
	if _, err := file.Write(canary()); err != nil {
		_ = file.Close()
		return nil, "", fmt.Errorf("canary: %w", err)
	}
	return file, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()), nil
}
