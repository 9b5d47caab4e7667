// SPDX-License-Identifier: BSD-3-Clause

package link_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
)

func TestMessagesArriveInOrder(t *testing.T) {
	var stream bytes.Buffer
	sender, receiver := link.NewConn(&stream), link.NewConn(&stream)
	want := []link.CaseStart{{ID: "a/tcp/ipv4/nic"}, {ID: "b"}}
	for _, body := range want {
		if err := sender.Send(link.KindCaseStart, body); err != nil {
			t.Fatal(err)
		}
	}
	for _, body := range want {
		message, err := receiver.Receive()
		if err != nil {
			t.Fatal(err)
		}
		got, err := link.Decode[link.CaseStart](message)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(body, got); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := receiver.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last message: %v, want EOF", err)
	}
}

func TestResumedLinkTakesTheFirstNumberAndThenCounts(t *testing.T) {
	var stream bytes.Buffer
	agent := link.NewConn(&stream)
	mustSend(t, agent, link.KindHeartbeat)
	if _, err := link.NewConn(&stream).Receive(); err != nil {
		t.Fatal(err)
	}
	mustSend(t, agent, link.KindHeartbeat)
	host := link.ResumeConn(&stream)
	if _, err := host.Receive(); err != nil {
		t.Fatalf("first frame after the restore: %v", err)
	}
	mustSend(t, agent, link.KindHeartbeat)
	stream.Next(stream.Len())
	mustSend(t, agent, link.KindHeartbeat)
	if _, err := host.Receive(); !errors.Is(err, link.ErrCorrupt) {
		t.Errorf("a frame lost after the restore went unnoticed: %v", err)
	}
}

func TestReceivedBodiesPassOnUnchanged(t *testing.T) {
	for _, body := range []any{nil, link.Log{ID: "x", Lines: []string{"<\"\u2028>"}}, []int{1}} {
		var first, second bytes.Buffer
		if err := link.NewConn(&first).Send(link.KindLog, body); err != nil {
			t.Fatal(err)
		}
		original := bytes.Clone(first.Bytes())
		message, err := link.NewConn(&first).Receive()
		if err != nil {
			t.Fatal(err)
		}
		if err := link.NewConn(&second).Send(message.Kind, message.Body); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(original, second.Bytes()) {
			t.Errorf("%v: sent %q, passed on %q", body, original, second.Bytes())
		}
	}
}

func TestDamageIsNoticed(t *testing.T) {
	frame := func(t *testing.T) []byte {
		var stream bytes.Buffer
		mustSend(t, link.NewConn(&stream), link.KindShutdown)
		return stream.Bytes()
	}
	for _, test := range []struct {
		name   string
		damage func([]byte) []byte
		want   error
	}{
		{"magic", func(b []byte) []byte { b[0]++; return b }, link.ErrCorrupt},
		{"length over the limit", func(b []byte) []byte { b[7] = 0xff; return b }, link.ErrCorrupt},
		{"sequence", func(b []byte) []byte { b[8]++; return b }, link.ErrCorrupt},
		{"checksum", func(b []byte) []byte { b[12]++; return b }, link.ErrCorrupt},
		{"payload", func(b []byte) []byte { b[len(b)-1]++; return b }, link.ErrCorrupt},
		{"header cut", func(b []byte) []byte { return b[:7] }, io.ErrUnexpectedEOF},
		{"payload cut", func(b []byte) []byte { return b[:len(b)-1] }, io.ErrUnexpectedEOF},
		{"payload missing", func(b []byte) []byte { return b[:16] }, io.ErrUnexpectedEOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := link.NewConn(bytes.NewBuffer(test.damage(frame(t)))).Receive()
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func FuzzReceive(f *testing.F) {
	var stream bytes.Buffer
	if err := link.NewConn(&stream).Send(link.KindLog, link.Log{ID: "x", Lines: []string{"y"}}); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		conn := link.NewConn(bytes.NewBuffer(data))
		for {
			message, err := conn.Receive()
			if err != nil {
				return
			}
			_, _ = link.Decode[link.Log](message)
		}
	})
}

func mustSend(t *testing.T, conn *link.Conn, kind link.Kind) {
	t.Helper()
	if err := conn.Send(kind, nil); err != nil {
		t.Fatal(err)
	}
}
