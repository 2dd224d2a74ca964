// Package firewall decides who reaches this host: the Supervisor API, and with
// the firewall on anything else.
//
//	table inet minke_supervisor {
//	  chain input {
//	    type filter hook input priority filter; policy accept
//	    established and related connections, and what comes from this host: accept
//	    the API's port: accept on its interfaces, else reject
//	    with the firewall on:
//	      tcp 22222 (ssh of balenaOS), tcp 2375 (engine), multicast, ICMP: accept
//	      udp 53 from bridges of containers: accept
//	      the rest: reject
//	  }
//	}
//
// What containers publish is forwarded, and no business of this table; nor can
// it open what another table closes. Apply replaces the table in one
// transaction, so there is no moment without it, and only if it is not as it
// should be: each rule has a comment with a hash of them all. Watch tells when
// something of it goes, as by "nft flush ruleset". Only Apply
// removes it.
package firewall

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// Rules say what the table has.
type Rules struct {
	Ports      []uint16 // of the Supervisor API
	Everywhere bool     // they are reached on every interface, else on those that containers and a VPN come by
	On         bool     // the rest of the host is closed
	None       bool     // there is no table
}

var (
	// apiInterfaces are where balena's supervisor is reached.
	apiInterfaces = []string{"lo", "supervisor0", "docker0", "resin-vpn", "tun0"}
	// bridges are beginnings of interfaces' names.
	bridges = []string{"br-", "docker0", "balena0", "minke0"}
	// open are TCP ports that stay open.
	open = []uint16{22222, 2375}
)

const tableName = "minke_supervisor"

// table is named by the port where that is not the usual one: two minkeds on
// one host leave each other's alone.
func (r Rules) table() *nftables.Table {
	name := tableName
	if len(r.Ports) > 0 && r.Ports[0] != usualPort {
		name += "_" + strconv.Itoa(int(r.Ports[0]))
	}
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
}

const usualPort = 48484

// Apply makes the table of this network namespace say what r says.
func Apply(r Rules) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := r.table()
	if r.None {
		c.AddTable(table) // so that deleting it cannot fail
		c.DelTable(table)
		return c.Flush()
	}
	chain := &nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	}
	list := r.list()
	comment, err := hashOf(list)
	if err != nil {
		return err
	}
	have, err := c.GetRules(table, chain)
	other := func(rule *nftables.Rule) bool { return !bytes.Equal(rule.UserData, comment) }
	if err == nil && len(have) == len(list) && !slices.ContainsFunc(have, other) {
		return nil
	}
	c.AddTable(table) // so that deleting it cannot fail
	c.DelTable(table)
	c.AddTable(table)
	c.AddChain(chain)
	for _, exprs := range list {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs, UserData: comment})
	}
	if err := c.Flush(); err != nil {
		return errdef.Unavailable.Errorf("write packet rules: %w; the kernel needs NF_TABLES_INET, NFT_CT, NFT_FIB_INET and NFT_REJECT_INET", err)
	}
	return nil
}

// hashOf is a comment, as nft shows it, that other rules do not have.
func hashOf(list [][]expr.Any) ([]byte, error) {
	h := sha256.New()
	for _, exprs := range list {
		for _, e := range exprs {
			data, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
			if err != nil {
				return nil, err
			}
			h.Write(data)
		}
	}
	return userdata.AppendString(nil, userdata.TypeComment, hex.EncodeToString(h.Sum(nil)[:8])), nil
}

// list is the rules in order.
func (r Rules) list() [][]expr.Any {
	out := [][]expr.Any{rule(established(), accept()), rule(address(expr.Fib{FlagSADDR: true}, unix.RTN_LOCAL), accept())}
	for _, p := range r.Ports {
		api := port(unix.IPPROTO_TCP, p)
		if r.Everywhere {
			out = append(out, rule(api, accept()))
			continue
		}
		for _, name := range apiInterfaces {
			out = append(out, rule(from(name+"\x00"), api, accept()))
		}
		out = append(out, rule(api, reject()))
	}
	if !r.On {
		return out
	}
	for _, p := range open {
		out = append(out, rule(port(unix.IPPROTO_TCP, p), accept()))
	}
	out = append(out, rule(address(expr.Fib{FlagDADDR: true}, unix.RTN_MULTICAST), accept()))
	for _, icmp := range []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		out = append(out, rule(protocol(icmp), accept()))
	}
	for _, name := range bridges {
		out = append(out, rule(from(name), port(unix.IPPROTO_UDP, 53), accept()))
	}
	return append(out, rule(reject()))
}

func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

const reg = unix.NFT_REG32_00

func is(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, is([]byte{p})}
}

// port is of the destination.
func port(proto byte, n uint16) []expr.Any {
	return append(protocol(proto),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, is(binaryutil.BigEndian.PutUint16(n)))
}

// from is a beginning of the name of the interface that a packet comes by.
func from(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1}, &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte(name)}}
}

// address is the kind of a packet's address, RTN_*, as the routes have it.
func address(which expr.Fib, kind uint32) []expr.Any {
	which.Register, which.ResultADDRTYPE = reg, true
	return []expr.Any{&which, is(binaryutil.NativeEndian.PutUint32(kind))}
}

func established() []expr.Any {
	bits := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// reject answers that nobody listens, which is no secret.
func reject() []expr.Any {
	const portUnreachable = 1 // NFT_REJECT_ICMPX_PORT_UNREACH
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: portUnreachable}}
}
