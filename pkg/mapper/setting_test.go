package mapper_test

import (
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

func TestCheckSetting(t *testing.T) {
	tests := []struct {
		option string
		ok     bool
	}{
		{"rbd_cache=false", true},
		{"rbd_cache=true", true},
		{"rbd_cache_size=33554432", true},
		{"rbd_cache_policy=writethrough", true},
		{"rbd_qos_iops_limit=50", true},
		{"rbd_readahead_max_bytes=0", true},
		{"rbd_read_from_replica_policy=localize", true},
		{"rbd_cache_policy=writearound", false},
		{"rbd_cache_policy=writeback", false},
		{"rbd_cache-policy=writearound", false},
		{"rbd_cache policy=writearound", false},
		{"rbd_cache_Policy=writearound", false},
		{"rbd_cache", false},
		{"rbd_cache=", false},
		{"=1", false},
		{"", false},
		{"ro", false},
		{"rados_osd_op_timeout=5", false},
		{"rbd_discard_on_zeroed_write_same=false", false},
		{"key=secret", false},
	}
	for _, test := range tests {
		if err := mapper.CheckSetting(test.option); (err == nil) != test.ok || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckSetting(%q): got %v, want success %t or an Invalid error", test.option, err, test.ok)
		}
	}
	for _, setting := range mapper.HonestWrites() {
		if err := mapper.CheckSetting(setting.String()); err != nil {
			t.Errorf("CheckSetting(%q), which mappers set themselves: got %v, want no error", setting, err)
		}
	}
}
