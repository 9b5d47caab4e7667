// SPDX-License-Identifier: BSD-3-Clause

package link

import (
	"encoding/json"
	"slices"
	"strings"
)

// Axes are protocol, family and link of an instance; the axes a case does not vary
// over are empty.
type Axes [3]string

// Case is what the instances of one case have in common.
type Case struct {
	Name       string   `json:"name"`
	Covers     []string `json:"covers"`
	Level      string   `json:"level"`
	Concurrent bool     `json:"concurrent,omitempty"`
}

// NewInstance is a case on some axes. Its id is the name and the axes, joined by
// slashes.
func NewInstance(of Case, axes Axes) Instance {
	id := of.Name
	for _, axis := range axes {
		if axis != "" {
			id += "/" + axis
		}
	}
	return Instance{
		ID: id, Name: of.Name, Covers: of.Covers, Level: of.Level, Concurrent: of.Concurrent,
		Proto: axes[0], Family: axes[1], Link: axes[2],
	}
}

// Instances travel by case: one by one those of the whole suite are several
// hundred thousand bytes of JSON, and to write, check and read it was a noticeable
// part of a boot under emulation.
type Instances []Instance

// group is the instances of a case that follow each other, as JSON.
type group struct {
	Case
	Axes []string `json:"axes"` // each joined by slashes
}

// MarshalJSON writes the instances by case.
func (l Instances) MarshalJSON() ([]byte, error) {
	groups := []group{}
	for _, i := range l {
		of := Case{Name: i.Name, Covers: i.Covers, Level: i.Level, Concurrent: i.Concurrent}
		if last := len(groups) - 1; last < 0 || !groups[last].same(of) {
			groups = append(groups, group{Case: of})
		}
		last := &groups[len(groups)-1]
		last.Axes = append(last.Axes, i.Proto+"/"+i.Family+"/"+i.Link)
	}
	return json.Marshal(groups)
}

func (c *Case) same(other Case) bool {
	return c.Name == other.Name && c.Level == other.Level && c.Concurrent == other.Concurrent &&
		slices.Equal(c.Covers, other.Covers)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (l *Instances) UnmarshalJSON(data []byte) error {
	var groups []group
	if err := json.Unmarshal(data, &groups); err != nil {
		return err
	}
	*l = nil
	for _, group := range groups {
		for _, joined := range group.Axes {
			var axes Axes
			copy(axes[:], strings.SplitN(joined, "/", len(axes)))
			*l = append(*l, NewInstance(group.Case, axes))
		}
	}
	return nil
}
