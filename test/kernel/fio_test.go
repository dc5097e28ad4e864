package kernel

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// FioVariable asks for TestFio, which measures for minutes and judges nothing.
const FioVariable = "RBD_CSI_FIO"

// A workload is what fio does to a device.
type workload struct{ name, direction, block, depth string }

var workloads = []workload{
	{"4k random read", "randread", "4k", "32"},
	{"4k random write", "randwrite", "4k", "32"},
	{"1M read", "read", "1M", "8"},
	{"1M write", "write", "1M", "8"},
}

// TestFio has fio read and write volumes of each mapper in one guest, and the same image by librbd alone,
// which is fio's own engine. All are written once before, so that reads find something.
func TestFio(t *testing.T) {
	switch _, err := exec.LookPath("fio"); {
	case os.Getenv(FioVariable) == "":
		t.Skipf("it measures for minutes: `make fio` runs it, or %s=1", FioVariable)
	case err != nil:
		t.Skipf("%v: install the package fio", err)
	}
	p := quietPlant(t, "auto", 1, "--workers", workersSocket)
	p.guests[0].shell(t, "modprobe -a fuse loop")
	rates := map[string]map[string]rate{"librbd": p.librbd(t)}
	mappers := []string{"krbd", "nbd", "fuse"}
	for _, mapper := range mappers {
		v := p.made(t, "block", map[string]string{"mapper": mapper})
		v.up(t, p.nodes[0])
		rates[mapper] = p.fio(t, "--ioengine=libaio", "--direct=1", "--filename="+v.file(p.nodes[0]))
		v.down(t, p.nodes[0])
	}
	var table strings.Builder
	for _, w := range workloads {
		bare := rates["librbd"][w.name]
		fmt.Fprintf(&table, "| %s, %s in flight | %s |", w.name, w.depth, bare)
		for _, mapper := range mappers {
			got := rates[mapper][w.name]
			fmt.Fprintf(&table, " %s | %.2f |", got, got.perSecond/bare.perSecond)
		}
		table.WriteString("\n")
	}
	t.Logf("| | librbd | krbd | ratio | nbd | ratio | fuse | ratio |\n%s", table.String())
}

// librbd measures an image that nobody maps, without librbd's cache, which the mappers go without, too.
func (p *plant) librbd(t *testing.T) map[string]rate {
	t.Helper()
	const name = "fio"
	image := p.ceph.Pool() + "/" + name
	for _, arguments := range [][]string{
		{"create", "--size", "1G", image},
		{"config", "image", "set", image, "rbd_cache", "false"},
	} {
		_, err := p.ceph.RBD(t.Context(), arguments...)
		must(t, err)
	}
	return p.fio(t, "--ioengine=rbd", "--clientname=admin", "--pool="+p.ceph.Pool(), "--rbdname="+name)
}

// A rate is what fio did in a second.
type rate struct{ perSecond, megabytes float64 }

// String is its operations, and its megabytes where those tell more.
func (r rate) String() string {
	if r.megabytes > r.perSecond/2 {
		return fmt.Sprintf("%.0f MB/s", r.megabytes)
	}
	return fmt.Sprintf("%.0f/s", r.perSecond)
}

// fio runs all workloads in the guest.
func (p *plant) fio(t *testing.T, target ...string) map[string]rate {
	t.Helper()
	p.fioOnce(t, append(target, "--rw=write", "--bs=4M", "--iodepth=4"))
	rates := map[string]rate{}
	for _, w := range workloads {
		rates[w.name] = p.fioOnce(t, append(target, "--rw="+w.direction, "--bs="+w.block, "--iodepth="+w.depth, "--time_based", "--runtime=10"))
	}
	return rates
}

func (p *plant) fioOnce(t *testing.T, arguments []string) rate {
	t.Helper()
	var said bytes.Buffer
	err := p.guests[0].Run(t.Context(), &said, Command{
		Arguments:   append([]string{"fio", "--name=x", "--size=256M", "--output-format=json"}, arguments...),
		Environment: []string{"CEPH_CONF=" + p.ceph.Conf()},
	})
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	type direction struct {
		IOPS  float64 `json:"iops"`
		Bytes float64 `json:"bw_bytes"`
	}
	var answer struct {
		Jobs []struct{ Read, Write direction }
	}
	_, text, _ := strings.Cut(said.String(), "{") // warnings come first
	must(t, json.Unmarshal([]byte("{"+text), &answer))
	job := answer.Jobs[0]
	return rate{job.Read.IOPS + job.Write.IOPS, (job.Read.Bytes + job.Write.Bytes) / 1e6}
}
