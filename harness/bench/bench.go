// SPDX-License-Identifier: BSD-3-Clause

// Package bench measures the harness itself on the machine at hand: what a user
// waits for. It holds benchmarks only; make bench-harness runs them.
package bench
