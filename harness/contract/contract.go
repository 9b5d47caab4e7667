// SPDX-License-Identifier: BSD-3-Clause

// Package contract writes and reads the JSON files that other people's scripts
// read: run.json, compare.json, check.json and the rest. All of them have one form.
package contract

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
)

// Write encodes value as indented JSON. A nil list is written as an empty one, at
// any depth, so that readers need no special case; "<", ">" and "&" stay as they
// are.
func Write(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(filled(reflect.ValueOf(value)).Interface())
}

// filled returns a copy of v in which no list is nil. A list that "omitempty"
// leaves out is left out when it is empty as well.
func filled(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Slice:
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(filled(v.Index(i)))
		}
		return out
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(filled(v.Elem()))
		return out
	case reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		for i := range v.NumField() {
			if field := out.Field(i); field.CanSet() {
				field.Set(filled(v.Field(i)))
			}
		}
		return out
	}
	return v
}

// Read decodes a file and refuses one whose schema is another than the one that
// this zcvet knows. Name is that of the file, for errors.
func Read[T any](from io.Reader, name string, schema int) (*T, error) {
	text, err := io.ReadAll(from)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	// First, since a file of another schema may not decode at all.
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if head.Schema != schema {
		return nil, fmt.Errorf("%s: schema %d, this zcvet reads schema %d", name, head.Schema, schema)
	}
	var value T
	if err := json.Unmarshal(text, &value); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &value, nil
}
