package network

import (
	"bytes"
	"errors"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watch notices when others remove what is ours from nftables, as by "nft flush
// ruleset" when somebody reloads a firewall, and has it written anew. The kernel
// tells each change; our own are known by the number of our socket.
type watch struct {
	conn *netlink.Conn
	once sync.Once
	wg   sync.WaitGroup
}

func watchRules(h *Host) (*watch, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w := &watch{conn: conn}
	w.wg.Go(func() { w.run(h) })
	return w, nil
}

func (w *watch) close() {
	w.once.Do(func() {
		w.conn.Close()
		w.wg.Wait()
	})
}

// rewriteAfter gathers what one reload of a firewall does.
const rewriteAfter = 100 * time.Millisecond

func (w *watch) run(h *Host) {
	changed := false
	for {
		msgs, err := w.conn.Receive()
		var timeout interface{ Timeout() bool }
		switch {
		case err == nil:
			for _, m := range msgs {
				changed = changed || h.rules.removedByOthers(m)
			}
		case errors.As(err, &timeout) && timeout.Timeout():
			changed = false
			w.conn.SetReadDeadline(time.Time{})
			h.log.Warn("packet rules were removed by another program; they are written anew", "table", h.rules.table.Name)
			if err := h.rules.rewrite(); err != nil {
				h.log.Error("write packet rules", "err", err)
			}
		case errors.Is(err, unix.ENOBUFS):
			changed = true // the kernel had more to tell than fits
		default:
			return
		}
		if changed {
			w.conn.SetReadDeadline(time.Now().Add(rewriteAfter))
		}
	}
}

// removedByOthers tells whether a message of the kernel says that something of
// our table is gone, and not by us.
func (r *rules) removedByOthers(m netlink.Message) bool {
	if m.Header.PID == r.port {
		return false
	}
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
	default:
		return false
	}
	const header = 4 // struct nfgenmsg
	if len(m.Data) < header {
		return false
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[header:])
	if err != nil {
		return false
	}
	table, chain := []byte(r.table.Name+"\x00"), []byte("user\x00")
	ours := false
	for _, a := range attrs {
		// The table's name is attribute 1 of all of these (NFTA_TABLE_NAME,
		// NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE).
		ours = ours || a.Type == 1 && bytes.Equal(a.Data, table)
		if m.Header.Type&0xff == unix.NFT_MSG_DELRULE && a.Type == unix.NFTA_RULE_CHAIN && bytes.Equal(a.Data, chain) {
			return false // the owner's
		}
	}
	return ours
}
