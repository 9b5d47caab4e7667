// SPDX-License-Identifier: BSD-3-Clause

package images

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/mkuimage/uimage/initramfs"
	"github.com/u-root/uio/llog"

	"github.com/zcvet/zcvet/harness/fault"
)

const archiveName = "initramfs.cpio"

// skeleton is what is in every image beside programs: the device nodes that the
// kernel and PID 1 need before devtmpfs is mounted, and the mount points.
func skeleton() []cpio.Record {
	return []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.Directory("etc", 0o755),
		cpio.Directory("proc", 0o755),
		cpio.Directory("run", 0o755),
		cpio.Directory("sys", 0o755),
		cpio.Directory("tmp", 0o777|cpio.S_ISVTX),
	}
}

// assemble writes the archive into dir.
func assemble(ctx context.Context, options Options, programs []program, files []File, dir string) error {
	records := skeleton()
	for _, p := range programs {
		content, err := os.ReadFile(p.file)
		if err != nil {
			return fault.New(fault.Infrastructure, "image: %w", err)
		}
		records = append(records, cpio.StaticRecord(content, cpio.Info{Name: p.place, Mode: cpio.S_IFREG | 0o755}))
	}
	for _, file := range files {
		mode := uint64(cpio.S_IFREG | 0o644)
		if file.Executable {
			mode = cpio.S_IFREG | 0o755
		}
		if folder := path.Dir(file.Place); !slices.ContainsFunc(records, func(r cpio.Record) bool { return r.Name == folder }) {
			records = append(records, cpio.Directory(folder, 0o755))
		}
		records = append(records, cpio.StaticRecord(file.Content, cpio.Info{Name: file.Place, Mode: mode}))
	}
	base, err := cpio.ArchiveFromRecords(records)
	if err != nil {
		return fault.New(fault.Infrastructure, "image: %w", err)
	}
	scratch := filepath.Join(dir, "scratch")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return options.Cache.Explain("image", err)
	}
	modifiers := []uimage.Modifier{
		uimage.WithTempDir(scratch),
		uimage.WithBaseArchive(base),
		uimage.WithOutput(&archiveFile{path: filepath.Join(dir, archiveName)}),
	}
	if options.Interactive {
		shell, err := interactive(ctx, options.Root)
		if err != nil {
			return err
		}
		modifiers = append(modifiers, shell...)
	}
	logger := llog.New(slog.LevelInfo, llog.WritePrintf(options.Log))
	if err := uimage.Create(logger, modifiers...); err != nil {
		return options.Cache.Explain("image", err)
	}
	return nil
}

// interactive is what makes the image one to work in: u-root's commands, all in
// one binary, with gosh as the shell.
func interactive(ctx context.Context, root string) ([]uimage.Modifier, error) {
	// runtime.GOROOT is empty in a binary that was built with -trimpath.
	goroot, err := toolOutput(ctx, root, "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(root)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "source tree: %w", err)
	}
	return []uimage.Modifier{
		uimage.WithReplaceEnv(golang.Default(
			golang.DisableCGO(),
			golang.WithGOOS("linux"),
			golang.WithGOARCH("amd64"),
			golang.WithGOROOT(goroot),
			golang.WithWorkingDir(absolute),
			// go.mod is read, never written.
			golang.WithMod(golang.ModReadonly),
			// The other line editor of gosh asks the terminal for its colours
			// and waits; a serial console that is a pipe never answers.
			golang.WithBuildTag("goshliner"),
		)),
		uimage.WithBusyboxCommands(commands...),
		uimage.WithBusyboxBuildOpts(&golang.BuildOpts{
			// As the packages in Go's cache are compiled.
			EnableInlining: true,
			ExtraArgs: []string{
				// gobusybox forces everything to be compiled again, the
				// standard library too.
				"-a=false",
				// It builds outside any module, where a -mod from the
				// user's GOFLAGS is an error.
				"-mod=",
			},
		}),
		uimage.WithShell("gosh"),
	}, nil
}

// archiveFile is a newc archive. Unlike the builder's own it notices when the
// disk is full.
type archiveFile struct{ path string }

// OpenWriter implements initramfs.WriteOpener.
func (a *archiveFile) OpenWriter() (initramfs.Writer, error) {
	file, err := os.OpenFile(a.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	buffered := bufio.NewWriterSize(file, 1<<20)
	return &archiveWriter{records: cpio.Newc.Writer(buffered), buffered: buffered, file: file}, nil
}

type archiveWriter struct {
	records  cpio.RecordWriter
	buffered *bufio.Writer
	file     *os.File
}

// WriteRecord implements cpio.RecordWriter. What differs between two builds of
// the same programs is taken out, the user's umask included.
func (w *archiveWriter) WriteRecord(record cpio.Record) error {
	if record.Mode&cpio.S_IFMT == cpio.S_IFREG {
		owner := record.Mode & 0o500
		record.Mode = cpio.S_IFREG | 0o200 | owner | owner>>3 | owner>>6
	}
	return w.records.WriteRecord(cpio.MakeReproducible(record))
}

// Finish implements initramfs.Writer.
func (w *archiveWriter) Finish() error {
	return errors.Join(cpio.WriteTrailer(w.records), w.buffered.Flush(), w.file.Close())
}
