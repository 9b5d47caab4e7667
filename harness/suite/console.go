// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
)

// tailLines is how much of the console an error shows.
const tailLines = 25

// consoleLog writes the console of all machines into one log, with marks that
// tell a reader which case ran, and remembers the end of it.
type consoleLog struct {
	writer io.Writer

	lock sync.Mutex
	last []string
}

// line adds a line of the kernel.
func (l *consoleLog) line(text string) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.last = append(l.last, text)
	if len(l.last) > tailLines {
		l.last = l.last[1:]
	}
	l.write(text)
}

// note adds a line of our own. It starts with "# zcvet", which no kernel prints.
func (l *consoleLog) note(format string, args ...any) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.write("# zcvet: " + fmt.Sprintf(format, args...))
}

func (l *consoleLog) write(line string) {
	if l.writer != nil {
		// The log is evidence, not a result: a disk that is full shows itself
		// when run.json is written.
		_, _ = io.WriteString(l.writer, line+"\n")
	}
}

// tail returns the last lines the kernel printed.
func (l *consoleLog) tail() string {
	l.lock.Lock()
	defer l.lock.Unlock()
	return strings.Join(l.last, "\n")
}

func marshal(value any) (json.RawMessage, error) {
	if value == nil {
		return nil, nil
	}
	return json.Marshal(value)
}
