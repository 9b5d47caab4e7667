// SPDX-License-Identifier: BSD-3-Clause

// Command agent is the init of zcvet's guest.
package main

import (
	"os"

	"github.com/zcvet/zcvet/guest/agent"
)

func main() { os.Exit(agent.Main(os.Args)) }
