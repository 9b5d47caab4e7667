// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

func (a *app) cacheCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "cache",
		Short: "Look at the cache, or make it smaller",
		Args:  noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			return command.Help()
		},
	}
	command.AddCommand(a.cacheListCommand(), a.cachePruneCommand())
	return command
}

func (a *app) cacheListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List what is in the cache",
		Args:  noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			dir, err := a.openCache()
			if err != nil {
				return err
			}
			entries, err := dir.List(command.Context())
			if err != nil {
				return err
			}
			return printEntries(dir, entries)
		},
	}
}

func (a *app) cachePruneCommand() *cobra.Command {
	var filter cache.Filter
	var kinds []string
	var keep string
	var unused time.Duration
	var all bool
	command := &cobra.Command{
		Use:   "prune",
		Short: "Remove what has not been used for a while",
		Long: `prune removes entries that nobody has used for a while, the longest unused
first, and never one that is in use. Everything removed can be made again, at the
price of time or of a download.`,
		Example: `  zcvet cache prune --unused 168h
  zcvet cache prune --keep 5GB --kind work
  zcvet cache prune --all`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			changed := command.Flags().Changed
			if !all && !changed("unused") && !changed("keep") {
				unused = 30 * 24 * time.Hour
			}
			for _, kind := range kinds {
				filter.Kinds = append(filter.Kinds, cache.Kind(kind))
			}
			if changed("keep") {
				size, err := humanize.ParseBytes(keep)
				if err != nil {
					return fault.New(fault.Usage, "--keep %s: %w", keep, err).WithAdvice("give a size such as 5GB")
				}
				filter.MaxSize = int64(size)
			}
			filter.OlderThan = unused
			dir, err := a.openCache()
			if err != nil {
				return err
			}
			removed, err := dir.Prune(command.Context(), filter)
			if printErr := printEntries(dir, removed); err == nil {
				err = printErr
			}
			return err
		},
	}
	flags := command.Flags()
	flags.StringSliceVar(&kinds, "kind", nil, "only these kinds: downloads, sources, kernels, images, probe, work")
	flags.DurationVar(&unused, "unused", 0, "remove what has not been used for so long (default 720h without --keep)")
	flags.StringVar(&keep, "keep", "", "remove until so much is left, such as 5GB")
	flags.BoolVar(&filter.DryRun, "dry-run", false, "only list what would be removed")
	flags.BoolVar(&all, "all", false, "remove everything that is not in use")
	command.MarkFlagsMutuallyExclusive("all", "unused")
	command.MarkFlagsMutuallyExclusive("all", "keep")
	return command
}

func printEntries(dir *cache.Dir, entries []cache.Entry) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	var total int64
	for _, entry := range entries {
		total += entry.Size
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", entry.Kind, entry.Key, humanize.IBytes(uint64(entry.Size)), humanize.Time(entry.Used))
	}
	if err := table.Flush(); err != nil {
		return fault.New(fault.Infrastructure, "cache: %w", err)
	}
	fmt.Printf("%d entries, %s, in %s\n", len(entries), humanize.IBytes(uint64(total)), dir.Root())
	return nil
}
