// SPDX-License-Identifier: BSD-3-Clause

package results

import (
	"os/exec"
	"strings"
)

// Tester is "Name <address>" of the person at this machine as git knows it, empty
// when git does not: a name is never made up.
func Tester() string {
	config := func(key string) string {
		value, err := exec.Command("git", "config", "--get", key).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(value))
	}
	name, address := config("user.name"), config("user.email")
	if name == "" || address == "" {
		return ""
	}
	return name + " <" + address + ">"
}
