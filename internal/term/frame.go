// Package term is the terminal wire protocol: what browsers, the SSH door, gateways and nodes say to each other
// about one session, and the pieces at both of its ends that need no operating system beneath them.
//
// # Frames
//
// A frame is one operation byte and its fields, big-endian, at most MaxFrame bytes. A websocket carries one frame
// per binary message (Parse, Frame.Append); a byte stream carries each with a four-byte length before it
// (Reader, Writer).
//
//	client → server                               server → client
//	0x01 input   data                             0x11 output  u64 offset of the first byte, data
//	0x02 resize  u16 columns, u16 rows            0x12 stderr  data (sessions without a terminal; no offset)
//	0x03 ack     u64 offset consumed              0x13 exit    i32 code, UTF-8 reason
//	0x04 eof                                      0x14 hello   u64 start offset, u8 flags
//	0x05 signal  u8 number                        0x15 error   UTF-8
//	0x06 ping                                     0x16 pong
//
// # Offsets
//
// Output bytes of a session are counted from 0 over its whole life. The server keeps the last ones in a Ring and
// sends at most WindowSize bytes beyond the client's last ack, so a slow client costs no memory anywhere; a client
// that comes back names the offset it wants next and misses nothing that the ring still holds. A hello is the
// first frame of an attachment; another one later means that output was lost to the ring's end.
//
// The package opens no sockets and starts no processes.
package term

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Subprotocol is the websocket subprotocol that carries these frames.
const Subprotocol = "learnos.term.v1"

const (
	// MaxFrame is the size of the longest frame in bytes, its operation byte included.
	MaxFrame = 64 << 10
	// MaxData is the most data that every kind of frame has room for.
	MaxData = MaxFrame - 16
	// WindowSize is how many output bytes may be under way beyond the last ack.
	WindowSize = 512 << 10
)

// Op is a frame's first byte.
type Op byte

// The operations, see the package comment.
const (
	OpInput  Op = 0x01
	OpResize Op = 0x02
	OpAck    Op = 0x03
	OpEOF    Op = 0x04
	OpSignal Op = 0x05
	OpPing   Op = 0x06

	OpOutput Op = 0x11
	OpStderr Op = 0x12
	OpExit   Op = 0x13
	OpHello  Op = 0x14
	OpError  Op = 0x15
	OpPong   Op = 0x16
)

// Flags of a hello.
const (
	FlagLost     = 1 << 0 // output before the start offset was lost
	FlagReadOnly = 1 << 1 // input will be ignored
)

// FromClient tells whether only clients send this operation; servers must refuse the others.
func (o Op) FromClient() bool { return o >= OpInput && o <= OpPing }

// FromServer tells whether only servers send this operation.
func (o Op) FromServer() bool { return o >= OpOutput && o <= OpPong }

func (o Op) String() string {
	switch o {
	case OpInput:
		return "input"
	case OpResize:
		return "resize"
	case OpAck:
		return "ack"
	case OpEOF:
		return "eof"
	case OpSignal:
		return "signal"
	case OpPing:
		return "ping"
	case OpOutput:
		return "output"
	case OpStderr:
		return "stderr"
	case OpExit:
		return "exit"
	case OpHello:
		return "hello"
	case OpError:
		return "error"
	case OpPong:
		return "pong"
	}
	return fmt.Sprintf("op 0x%02x", byte(o))
}

// ErrFrame is wrapped by every error about a malformed frame.
var ErrFrame = errors.New("malformed frame")

// Frame is one decoded frame. Op decides which fields mean something.
type Frame struct {
	Op     Op
	Offset uint64 // ack: next byte wanted; output: of Data's first byte; hello: start
	Cols   uint16 // resize
	Rows   uint16 // resize
	Signal uint8  // signal: the Linux number, 1 to 64
	Flags  uint8  // hello
	Code   int32  // exit: 128 + signal for a killed process
	Data   []byte // input, output, stderr: bytes; exit: reason; error: message (both UTF-8)
}

// Parse decodes one frame that fills b exactly. Frame.Data points into b.
func Parse(b []byte) (Frame, error) {
	if len(b) == 0 {
		return Frame{}, fmt.Errorf("%w: empty", ErrFrame)
	}
	if len(b) > MaxFrame {
		return Frame{}, fmt.Errorf("%w: %d bytes, the limit is %d", ErrFrame, len(b), MaxFrame)
	}
	f := Frame{Op: Op(b[0])}
	fixed := fieldBytes(f.Op)
	if fixed < 0 {
		return Frame{}, fmt.Errorf("%w: unknown %v", ErrFrame, f.Op)
	}
	body := b[1:]
	if len(body) < fixed || len(body) > fixed && !hasData(f.Op) {
		return Frame{}, fmt.Errorf("%w: %v of %d bytes", ErrFrame, f.Op, len(b))
	}
	switch f.Op {
	case OpResize:
		f.Cols, f.Rows = binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:])
		if f.Cols == 0 || f.Rows == 0 {
			return Frame{}, fmt.Errorf("%w: resize to %d×%d", ErrFrame, f.Cols, f.Rows)
		}
	case OpAck, OpOutput:
		f.Offset = binary.BigEndian.Uint64(body)
	case OpHello:
		f.Offset, f.Flags = binary.BigEndian.Uint64(body), body[8]
	case OpSignal:
		if f.Signal = body[0]; f.Signal < 1 || f.Signal > 64 {
			return Frame{}, fmt.Errorf("%w: signal %d", ErrFrame, f.Signal)
		}
	case OpExit:
		f.Code = int32(binary.BigEndian.Uint32(body))
	}
	if hasData(f.Op) && len(body) > fixed {
		f.Data = body[fixed:]
	}
	if (f.Op == OpExit || f.Op == OpError) && !utf8.Valid(f.Data) {
		return Frame{}, fmt.Errorf("%w: text of %v is not UTF-8", ErrFrame, f.Op)
	}
	return f, nil
}

// Append encodes the frame behind b, without a length. Data longer than MaxData makes a frame that no peer
// accepts; Writer refuses it.
func (f Frame) Append(b []byte) []byte {
	b = append(b, byte(f.Op))
	switch f.Op {
	case OpResize:
		b = binary.BigEndian.AppendUint16(b, f.Cols)
		b = binary.BigEndian.AppendUint16(b, f.Rows)
	case OpAck, OpOutput:
		b = binary.BigEndian.AppendUint64(b, f.Offset)
	case OpHello:
		b = binary.BigEndian.AppendUint64(b, f.Offset)
		b = append(b, f.Flags)
	case OpSignal:
		b = append(b, f.Signal)
	case OpExit:
		b = binary.BigEndian.AppendUint32(b, uint32(f.Code))
	}
	if hasData(f.Op) {
		b = append(b, f.Data...)
	}
	return b
}

// fieldBytes is the size of an operation's fixed fields, or -1 for no operation at all.
func fieldBytes(o Op) int {
	switch o {
	case OpInput, OpEOF, OpPing, OpStderr, OpError, OpPong:
		return 0
	case OpSignal:
		return 1
	case OpResize, OpExit:
		return 4
	case OpAck, OpOutput:
		return 8
	case OpHello:
		return 9
	}
	return -1
}

func hasData(o Op) bool {
	switch o {
	case OpInput, OpOutput, OpStderr, OpExit, OpError:
		return true
	}
	return false
}
