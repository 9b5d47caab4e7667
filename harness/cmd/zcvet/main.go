// SPDX-License-Identifier: BSD-3-Clause

// Command zcvet tells whether a revision of a zero-copy notification patch
// series does what it says: it builds a kernel with the series, boots it in QEMU
// and runs the conformance cases on it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/checkout"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/janitor"
	"github.com/zcvet/zcvet/harness/terminal"
	"github.com/zcvet/zcvet/harness/vet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// The first signal ends the run in good order; the second ends the process.
	context.AfterFunc(ctx, stop)
	code := execute(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// app is what all commands share.
type app struct {
	cacheDir       string
	quiet, verbose bool
	stopJanitor    func()
	// running is true once the command line was accepted.
	running bool
}

// verdictError carries the class of a finished run to the exit code. It has been
// shown already.
type verdictError struct{ class fault.Class }

func (e verdictError) Error() string { return "verdict: " + e.class.String() }

func execute(ctx context.Context, arguments []string) int {
	a := &app{}
	root := a.root()
	root.SetArgs(arguments)
	defer func() {
		if a.stopJanitor != nil {
			a.stopJanitor()
		}
	}()
	err := root.ExecuteContext(ctx)
	if reached, ok := errors.AsType[verdictError](err); ok {
		return reached.class.ExitCode()
	}
	if err != nil && !a.running {
		// Cobra's own complaints have no class.
		err = fault.New(fault.Usage, "%w", err)
	}
	if err != nil {
		a.uiOn(os.Stderr).Error(err)
	}
	return fault.Of(err).ExitCode()
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "zcvet",
		Short: "Vet a zero-copy notification patch series for Linux",
		Long: `zcvet builds a kernel with a patch series applied, boots it in QEMU and runs
conformance and regression cases for zero-copy notifications on it.

Exit codes: 0 all MUST cases passed, 1 some failed, 2 usage, 3 the series does
not apply, 4 the build failed, 5 the guest did not boot, 6 the kernel crashed,
hung or splatted, 7 infrastructure.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			return command.Help()
		},
	}
	root.SetFlagErrorFunc(func(command *cobra.Command, err error) error {
		return fmt.Errorf("%w (%s --help lists the flags)", err, command.CommandPath())
	})
	root.PersistentFlags().StringVar(&a.cacheDir, "cache", "", "directory of the cache (default $ZCVET_CACHE, or zcvet in the user's cache directory)")
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "only warnings, failures and the verdict")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "every case, and what the tools print")
	root.MarkFlagsMutuallyExclusive("quiet", "verbose")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(a.runCommand(), a.compareCommand(), a.checkCommand(), a.mutateCommand(), a.benchCommand(), a.buildCommand(), a.shellCommand(), a.doctorCommand(), a.cacheCommand(), a.matrixCommand(), a.reportCommand(), a.b4CheckCommand(), a.janitorCommand())
	a.noteRunning(root)
	return root
}

// noteRunning has every command note that its flags and arguments were accepted.
func (a *app) noteRunning(command *cobra.Command) {
	if run := command.RunE; run != nil {
		command.RunE = func(command *cobra.Command, arguments []string) error {
			a.running = true
			return run(command, arguments)
		}
	}
	for _, sub := range command.Commands() {
		a.noteRunning(sub)
	}
}

func noArguments(command *cobra.Command, arguments []string) error {
	if len(arguments) > 0 {
		return fmt.Errorf("%s does not take %q (%s --help shows what there is)", command.CommandPath(), arguments[0], command.CommandPath())
	}
	return nil
}

func (a *app) uiOn(screen *os.File) *terminal.UI {
	options := terminal.Detect(screen)
	options.Quiet, options.Verbose = a.quiet, a.verbose
	return terminal.New(screen, options)
}

func (a *app) openCache() (*cache.Dir, error) { return cache.Open(a.cacheDir) }

// vetter returns what the commands that need a kernel share; it talks to screen.
func (a *app) vetter(screen *os.File) (*vet.Vetter, error) {
	root, err := checkout.Find()
	if err != nil {
		return nil, err
	}
	cacheDir, err := a.openCache()
	if err != nil {
		return nil, err
	}
	if a.stopJanitor, err = janitor.Start(cacheDir.Root()); err != nil {
		return nil, err
	}
	v := &vet.Vetter{Cache: cacheDir, UI: a.uiOn(screen), Root: root}
	cacheDir.Waiting = func(kind cache.Kind, _ string, owner int) {
		v.UI.Note("waiting for process %d, which makes the same entry of %s in the cache", owner, kind)
	}
	if a.verbose {
		v.Log = os.Stderr
	}
	return v, nil
}
