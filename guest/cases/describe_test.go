// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
)

// Every instance arrives as it was sent, and all of them are short.
func TestInstancesOnTheLink(t *testing.T) {
	var sent link.Instances
	for _, instance := range Instances() {
		sent = append(sent, instance.Describe())
	}
	encoded, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	var arrived link.Instances
	if err := json.Unmarshal(encoded, &arrived); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sent, arrived); diff != "" {
		t.Errorf("-sent +arrived:\n%s", diff)
	}
	one, err := json.Marshal([]link.Instance(sent))
	if err != nil {
		t.Fatal(err)
	}
	if len(encoded) > len(one)/4 {
		t.Errorf("%d bytes by case, %d one by one", len(encoded), len(one))
	}
}
