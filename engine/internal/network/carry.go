package network

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Connections and datagrams that no packet rule has turned are carried to the
// container by this process: IPv6 from outside to a container without IPv6. The
// container sees the host's address.

// carry serves connections that no rule has turned, until l is closed.
func carry(l *net.TCPListener, target netip.AddrPort) {
	for {
		in, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(target))
			if err != nil {
				return
			}
			defer out.Close()
			var wg sync.WaitGroup
			pipe := func(dst, src *net.TCPConn) {
				wg.Go(func() {
					io.Copy(dst, src)
					dst.CloseWrite()
				})
			}
			pipe(out, in)
			pipe(in, out)
			wg.Wait()
		}()
	}
}

const (
	// flowIdle is how long the way back stays open without a datagram: twice
	// what the kernel has for UDP flows that go both ways is far too long, and
	// 30 s, for those that go one way, too short for a slow answer.
	flowIdle = 90 * time.Second
	maxFlows = 1024 // of one port; more are dropped
)

// carryUDP does the same for datagrams, until c is closed.
func carryUDP(c *net.UDPConn, target netip.AddrPort) {
	// So that answers come from the address that was asked.
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		})
	}
	var mu sync.Mutex
	flows := map[netip.AddrPort]*net.UDPConn{}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range flows {
			f.Close()
		}
	}()
	buf, info := make([]byte, 65535), make([]byte, 128)
	for {
		n, infoLen, _, client, err := c.ReadMsgUDPAddrPort(buf, info)
		if err != nil {
			return
		}
		mu.Lock()
		out, known := flows[client]
		full := len(flows) >= maxFlows
		mu.Unlock()
		if !known {
			if full {
				continue
			}
			if out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(target)); err != nil {
				continue
			}
			mu.Lock()
			flows[client] = out
			mu.Unlock()
			from := append([]byte(nil), info[:infoLen]...) // the kernel takes what it gave
			go func() {
				answers(c, out, client, from)
				mu.Lock()
				delete(flows, client)
				mu.Unlock()
				out.Close()
			}()
		}
		out.SetReadDeadline(time.Now().Add(flowIdle))
		out.Write(buf[:n])
	}
}

// answers carries datagrams back until there are none for a while.
func answers(c, out *net.UDPConn, client netip.AddrPort, from []byte) {
	buf := make([]byte, 65535)
	for {
		n, err := out.Read(buf)
		if err != nil {
			return
		}
		if _, _, err := c.WriteMsgUDPAddrPort(buf[:n], from, client); err != nil {
			return
		}
	}
}
