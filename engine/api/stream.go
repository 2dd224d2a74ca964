package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/sock"
)

// frames writes one of several streams to a connection they share, each piece
// behind a header of eight bytes: stream, three zeros, length (big endian), as
// the API specification gives it under POST /containers/{id}/attach.
type frames struct {
	mu     *sync.Mutex
	w      io.Writer
	stream byte
}

const (
	stdoutStream = 1
	stderrStream = 2
)

func (f frames) Write(p []byte) (int, error) {
	buf := make([]byte, 8+len(p))
	buf[0] = f.stream
	binary.BigEndian.PutUint32(buf[4:], uint32(len(p)))
	copy(buf[8:], p)
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.w.Write(buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// bothWays has the client send on while it is answered; otherwise net/http ends
// the body with the first line of the answer. What is left of the body when the
// handler ends, such as a tar's padding, end takes: net/http panics over a body
// whose end comes later.
func bothWays(w http.ResponseWriter, r *http.Request) (end func()) {
	http.NewResponseController(w).EnableFullDuplex()
	const little = 256 << 10 // as net/http has it
	return func() { io.CopyN(io.Discard, r.Body, little) }
}

// outputs are the writers for stdout and stderr: the same raw one for a
// terminal, else framed.
func outputs(w io.Writer, tty bool) (stdout, stderr io.Writer) {
	if tty {
		return w, w
	}
	mu := &sync.Mutex{}
	return frames{mu, w, stdoutStream}, frames{mu, w, stderrStream}
}

// hijacked takes over the connection of a request and answers it, with 101 if
// the client asked for an upgrade.
func hijacked(w http.ResponseWriter, r *http.Request, contentType string) (net.Conn, *bufio.Reader, error) {
	// Some clients (dockerode) repeat the query in a body. It is no input.
	if r.ContentLength > 0 {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, nil, errdef.Invalid.Errorf("read request body: %w", err)
		}
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	var head bytes.Buffer
	if r.Header.Get("Upgrade") != "" {
		head.WriteString("HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n")
	} else {
		head.WriteString("HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n")
	}
	for name, values := range w.Header() {
		if name != "Content-Type" {
			head.WriteString(name + ": " + strings.Join(values, ", ") + "\r\n")
		}
	}
	head.WriteString("\r\n")
	if _, err := conn.Write(head.Bytes()); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return &headFirst{Conn: conn}, buf.Reader, nil
}

// headFirst is a connection on which output waits until the client has read the
// head of the answer. Clients that read ahead while they look for its end
// (docker-py) lose what comes with it; from Docker it comes later, for its
// containers take longer to start.
type headFirst struct {
	net.Conn
	once sync.Once
}

// headTime is the longest that output waits for a client that does not read.
const headTime = 200 * time.Millisecond

func (c *headFirst) Write(p []byte) (int, error) {
	c.once.Do(func() {
		// What another process reads gives no signal.
		for start := time.Now(); sock.Unread(c.Conn) && time.Since(start) < headTime; {
			time.Sleep(100 * time.Microsecond)
		}
	})
	return c.Conn.Write(p)
}

// runAttached carries an attachment over the request's own connection.
func runAttached(w http.ResponseWriter, r *http.Request, a *engine.Attachment, contentType string) error {
	conn, in, err := hijacked(w, r, contentType)
	if err != nil {
		a.Close()
		return err
	}
	defer conn.Close()
	stdout, stderr := outputs(conn, a.TTY)
	// The request's context ends with the hijacking handler, not the client.
	// An error is the client's leaving or detaching: there is nobody to tell.
	a.Run(context.WithoutCancel(r.Context()), in, stdout, stderr)
	return nil
}
