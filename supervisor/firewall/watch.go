package firewall

import (
	"bytes"
	"context"
	"errors"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls lost when something of the table may be gone, whoever removed it,
// until ctx ends. Apply does so, too; one after it finds all as it should be.
func Watch(ctx context.Context, lost func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // the kernel had more to tell than fits
			lost()
		case err != nil:
			return err
		}
		for _, m := range msgs {
			if removes(m) {
				lost()
			}
		}
	}
}

// removes reports whether a message of the kernel says that something of the
// table is gone.
func removes(m netlink.Message) bool {
	const header = 4 // struct nfgenmsg
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE:
		// The table's name is an attribute of all three.
		return len(m.Data) > header && bytes.Contains(m.Data[header:], []byte(tableName))
	}
	return false
}
