// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"io"
	"net/mail"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/vet"
)

// maxMail bounds a mail on standard input, in bytes.
const maxMail = 16 << 20

func (a *app) b4CheckCommand() *cobra.Command {
	var options vet.Options
	command := &cobra.Command{
		Use:   "b4-check",
		Short: "Vet the series of a mail, as b4's review hook",
		Long: `b4-check reads a mail of a series on standard input, vets the series that its
message-id names, and prints the results as b4 reads them. Tell b4 with

  git config b4.review-series-check-cmd "zcvet b4-check --kernel 6.12"

What happens on the way is shown on standard error. The results are kept in the
user's data directory, one for each series, unless --out names another: b4 calls its
hooks in the reviewer's kernel tree. The exit code is 0 if the results could be
told, whatever they are.`,
		Example: `  zcvet b4-check --suite scm <cover-letter`,
		Args:    noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			return a.b4Check(command, options)
		},
	}
	kernelFlags(command, &options)
	for _, name := range []string{"series", "rev"} {
		if err := command.Flags().MarkHidden(name); err != nil {
			panic(err) // a flag was renamed
		}
	}
	caseFlags(command, &options)
	return command
}

func (a *app) b4Check(command *cobra.Command, options vet.Options) error {
	if options.Series != "none" || options.Revision != 0 {
		return fault.New(fault.Usage, "b4-check takes the series from the mail, not by --series and --rev")
	}
	id, err := messageID(command.InOrStdin())
	if err != nil {
		return err
	}
	options.Series = id
	if options.Out == "" {
		if options.Out, err = reviewDirectory(id); err != nil {
			return err
		}
	}
	v, err := a.vetter(os.Stderr)
	if err != nil {
		return err
	}
	attempt, err := v.Begin(options, options.RunCommand())
	if err != nil {
		return err
	}
	run, err := attempt.Go(command.Context())
	if err != nil {
		v.UI.Error(err)
	}
	v.UI.Summary(run)
	if err := report.WriteB4(command.OutOrStdout(), run, attempt.Path()); err != nil {
		return fault.New(fault.Infrastructure, "b4-check: %w", err)
	}
	return nil
}

// reviewDirectory is where the results of a reviewed series go.
func reviewDirectory(id string) (string, error) {
	data := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) { // by the rule of the specification
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fault.New(fault.Usage, "no place for the results: %w", err).WithAdvice("name one in --out")
		}
		data = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(data, "zcvet", "reviews", url.PathEscape(id)), nil
}

// messageID finds the message-id of a mail.
func messageID(from io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(from, maxMail))
	if err != nil {
		return "", fault.New(fault.Infrastructure, "read the mail: %w", err)
	}
	// A mailbox begins with a line that is no header.
	if bytes.HasPrefix(text, []byte("From ")) {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	message, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		return "", fault.New(fault.Usage, "standard input is no mail: %w", err).
			WithAdvice("give b4-check the cover letter or a patch as it came by mail")
	}
	id := strings.Trim(strings.TrimSpace(message.Header.Get("Message-Id")), "<>")
	if id == "" || strings.ContainsAny(id, " \t<>") || !strings.Contains(id, "@") {
		return "", fault.New(fault.Usage, "the mail on standard input has no message-id").
			WithAdvice("give b4-check the cover letter or a patch as it came by mail")
	}
	return id, nil
}
