// SPDX-License-Identifier: BSD-3-Clause

//go:build !amd64

package machine

// hostTSC is 0: TCG makes up a counter of its own on this host.
func hostTSC() int { return 0 }
