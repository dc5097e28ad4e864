package params_test

import (
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
)

// The volume contexts that released versions wrote into PersistentVolumes. Lines are
// added and never changed or removed.
var releasedContexts = []struct {
	attributes map[string]string
	context    params.VolumeContext
}{
	{map[string]string{}, params.VolumeContext{Mapper: params.Auto}},
	{map[string]string{"mapper": "fuse", "fsType": "ext4", "mkfsOptions": "-E nodiscard,lazy_itable_init=0 -m0"},
		params.VolumeContext{Mapper: params.FUSE, FSType: params.Ext4,
			MkfsOptions: []string{"-E", "nodiscard,lazy_itable_init=0", "-m0"}}},
	{map[string]string{"mapper": "krbd", "mapOptions": "ms_mode=secure,rxbounce", "fsType": "xfs"},
		params.VolumeContext{Mapper: params.KRBD, MapOptions: []string{"ms_mode=secure", "rxbounce"}, FSType: params.XFS}},
}

// The publish contexts that released versions wrote into VolumeAttachments. Lines are
// added and never changed or removed.
var releasedPublishContexts = []struct {
	metadata map[string]string
	context  params.PublishContext
}{
	{map[string]string{"generation": "1", "imageID": "1f3a9c77b2d0e4"},
		params.PublishContext{Generation: 1, ImageID: "1f3a9c77b2d0e4"}},
	{map[string]string{"generation": "18446744073709551615", "imageID": "10"},
		params.PublishContext{Generation: 1<<64 - 1, ImageID: "10"}},
}

func TestReleasedContextsAreReadForEver(t *testing.T) {
	for _, c := range releasedContexts {
		got, err := params.ParseVolumeContext(c.attributes)
		if err != nil || !reflect.DeepEqual(got, c.context) {
			t.Errorf("read %v: got %+v, %v; want %+v", c.attributes, got, err, c.context)
		}
		if got := c.context.Map(); !maps.Equal(got, c.attributes) {
			t.Errorf("write %+v: got %v, want %v", c.context, got, c.attributes)
		}
	}
	for _, c := range releasedPublishContexts {
		got, err := params.ParsePublishContext(c.metadata)
		if err != nil || got != c.context {
			t.Errorf("read %v: got %+v, %v; want %+v", c.metadata, got, err, c.context)
		}
		if got := c.context.Map(); !maps.Equal(got, c.metadata) {
			t.Errorf("write %+v: got %v, want %v", c.context, got, c.metadata)
		}
	}
}

func TestUnknownKeysOfContextsAreLeftAlone(t *testing.T) {
	more := []string{"storage.kubernetes.io/csiProvisionerIdentity", "1-2-rbd-csi.io", "csi.storage.k8s.io/pod.name", "web-0",
		"fstype", "no", "later", "yes"}
	if got, err := params.ParseVolumeContext(with(nil, more...)); err != nil || got.FSType != "" {
		t.Errorf("volume context: got %+v, %v; want the default", got, err)
	}
	want := releasedPublishContexts[0]
	if got, err := params.ParsePublishContext(with(want.metadata, more...)); err != nil || got != want.context {
		t.Errorf("publish context: got %+v, %v; want %+v", got, err, want.context)
	}
}

func TestParseVolumeContextRefuses(t *testing.T) {
	const secret = "AQBXeANrPRjXExAA"
	for _, c := range []struct{ name, key, value, hint string }{
		{"unknown mapper", "mapper", "iscsi", "mapper"},
		{"unknown filesystem", "fsType", "zfs", "fsType"},
		{"force", "mkfsOptions", "-f", "mkfsOptions"},
		{"key in the options", "mapOptions", "ms_mode=crc,secret=" + secret, "option secret is not allowed"},
		{"key's name in the options", "mapOptions", "key=" + secret, "option key is not allowed"},
		{"keyring in the options", "mapOptions", "keyring=" + secret, "option keyring"},
		{"user in the options", "mapOptions", "name=" + secret, "option name"},
		{"key in a malformed option", "mapOptions", "Secret " + secret, "option 1"},
		{"option without a value", "mapOptions", "a,b=", "option 2"},
		{"option without a key", "mapOptions", "=" + secret, "option 1"},
		{"blank in a value", "mapOptions", "a=b c", "option 1"},
		{"line end in a value", "mapOptions", "a=b\nc", "option 1"},
		{"unicode in a value", "mapOptions", "a=ü", "option 1"},
		{"upper case in a key", "mapOptions", "NoShare", "option 1"},
		{"empty option", "mapOptions", "a,,b", "empty"},
		{"only a comma", "mapOptions", ",", "empty"},
		{"given twice", "mapOptions", "a=1,b,a=2", "option a is given twice"},
		{"too long", "mapOptions", strings.Repeat("a", 1025), "1024"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := params.ParseVolumeContext(map[string]string{c.key: c.value})
			wantInvalid(t, err, "volume context", c.key, c.hint)
			wantHidden(t, err, secret)
		})
	}
}

// The largest context that is accepted fits into the map of a request.
func TestVolumeContextFitsTheSpecification(t *testing.T) {
	context, err := params.ParseVolumeContext(map[string]string{"mapper": "krbd", "fsType": "ext4",
		"mapOptions": strings.Repeat("a", 1024), "mkfsOptions": strings.Repeat("-q ", 341)})
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for key, value := range context.Map() {
		size += len(key) + len(value)
	}
	if size > 4096 {
		t.Errorf("got a map of %d bytes, want at most 4096", size)
	}
}

func TestFilesystem(t *testing.T) {
	for _, c := range []struct {
		name              string
		class, mkfs, asks string
		want, hint        string
	}{
		{name: "nobody says", want: "ext4"},
		{name: "class says", class: "xfs", want: "xfs"},
		{name: "request says", asks: "xfs", want: "xfs"},
		{name: "both say", class: "xfs", asks: "xfs", want: "xfs"},
		{name: "they differ", class: "ext4", asks: "xfs", hint: "contradicts"},
		{name: "unknown", asks: "ntfs", hint: "ext4, xfs"},
		{name: "options of the requested one", mkfs: "-d agcount=4", asks: "xfs", want: "xfs"},
		{name: "options of the other one", mkfs: "-d agcount=4", asks: "ext4", hint: "-d"},
		{name: "options not of the default", mkfs: "-d agcount=4", hint: "-d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			context, err := params.ParseVolumeContext(map[string]string{"fsType": c.class, "mkfsOptions": c.mkfs})
			if err != nil {
				t.Fatal(err)
			}
			got, err := context.Filesystem(c.asks)
			if c.hint != "" {
				wantInvalid(t, err, c.hint)
			} else if err != nil || got != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestCheckMkfs(t *testing.T) {
	for _, c := range []struct{ name, fsType, options, hint string }{
		{"none", "ext4", "", ""},
		{"ext4, usual", "ext4", "-m 0 -E lazy_itable_init=1,nodiscard -O ^metadata_csum -i 65536", ""},
		{"ext4, joined", "ext4", "-qm0 -KvLnone", ""},
		{"a letter of several", "ext4", "-Knone", "-n is not allowed"},
		{"ext4, argument like an option", "ext4", "-L -F", ""},
		{"xfs, usual", "xfs", "-m reflink=1,crc=1 -i size=512 -d agcount=8 -l size=64m -n ftype=1 -s size=4096 -K -q", ""},
		{"force", "ext4", "-m 0 -F", "-F is not allowed"},
		{"force, joined", "ext4", "-qFv", "-F is not allowed"},
		{"force, xfs", "xfs", "-f", "-f is not allowed"},
		{"UUID", "ext4", "-U random", "UUID"},
		{"UUID, joined", "ext4", "-Urandom", "UUID"},
		{"UUID, xfs", "xfs", "-m crc=1,uuid=deadbeef", "UUID"},
		{"type", "ext4", "-t ext2", "fsType"},
		{"offset", "ext4", "-E nodiscard,offset=512", "offset"},
		{"offset in upper case", "ext4", "-E OFFSET=512", "OFFSET"},
		{"journal elsewhere", "ext4", "-J device=LABEL=x", "device"},
		{"a journal", "ext4", "-O journal_dev", "journal_dev"},
		{"a journal, joined", "ext4", "-Ojournal_dev", "journal_dev"},
		{"dry run", "ext4", "-n", "whole filesystem"},
		{"dry run, xfs", "xfs", "-N", "whole filesystem"},
		{"superblocks only", "ext4", "-S", "whole filesystem"},
		{"files", "ext4", "-d etc", "files of the node"},
		{"files, xfs", "xfs", "-p proto", "files of the node"},
		{"log elsewhere", "xfs", "-l logdev=sdb", "logdev"},
		{"realtime device", "xfs", "-r rtdev=sdb", "-r"},
		{"device", "ext4", "/dev/sda", "paths"},
		{"device as an argument", "ext4", "-L /dev/sda", "paths"},
		{"relative device", "ext4", "-q sda", `"sda"`},
		{"size", "ext4", "1000", `"1000"`},
		{"argument missing", "ext4", "-q -m", "lacks its argument"},
		{"end of options", "ext4", "--", `"--"`},
		{"long option", "xfs", "--help", `"--help"`},
		{"dash", "ext4", "-", `"-"`},
		{"unknown", "ext4", "-Z", "-Z"},
		{"unknown filesystem", "zfs", "-q", "-q"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := params.CheckMkfs(c.fsType, strings.Fields(c.options))
			if c.hint != "" {
				wantInvalid(t, err, c.hint)
			} else if err != nil {
				t.Errorf("got %v, want none", err)
			}
		})
	}
	_, err := params.ParseVolumeContext(map[string]string{"fsType": "xfs", "mkfsOptions": "-E nodiscard"})
	wantInvalid(t, err, "volume context: mkfsOptions", "mkfs.xfs")
	for _, odd := range []string{"-L\x00x", "-L\x1bx", "-L\u202ex", strings.Repeat("-q ", 400)} {
		_, err := params.ParseVolumeContext(map[string]string{"mkfsOptions": odd})
		wantInvalid(t, err, "mkfsOptions")
	}
}

// An option with an argument takes the next word, and one without does not.
func TestMkfsArguments(t *testing.T) {
	for fsType, letters := range map[string]string{"ext4": "bCeEgGiIJLmNOT", "xfs": "bdilLmns"} {
		for _, letter := range letters {
			if err := params.CheckMkfs(fsType, []string{"-" + string(letter), "1"}); err != nil {
				t.Errorf("mkfs.%s -%c 1: got %v, want none", fsType, letter, err)
			}
			wantInvalid(t, params.CheckMkfs(fsType, []string{"-" + string(letter)}), "lacks its argument")
		}
	}
	for fsType, letters := range map[string]string{"ext4": "DjKqv", "xfs": "Kq"} {
		for _, letter := range letters {
			if err := params.CheckMkfs(fsType, []string{"-" + string(letter)}); err != nil {
				t.Errorf("mkfs.%s -%c: got %v, want none", fsType, letter, err)
			}
			wantInvalid(t, params.CheckMkfs(fsType, []string{"-" + string(letter), "1"}), `"1" is not`)
		}
	}
	longest := "-L " + strings.Repeat("a", 1021)
	if _, err := params.ParseVolumeContext(map[string]string{"mkfsOptions": longest}); err != nil {
		t.Errorf("1024 bytes: got %v, want none", err)
	}
}

func TestParsePublishContextRefuses(t *testing.T) {
	good := releasedPublishContexts[0].metadata
	for _, c := range []struct{ name, key, value, hint string }{
		{"no generation", "generation", "", "generation: required"},
		{"no image", "imageID", "", "imageID: required"},
		{"zero", "generation", "0", "positive"},
		{"negative", "generation", "-1", "positive"},
		{"signed", "generation", "+1", "positive"},
		{"leading zero", "generation", "01", "positive"},
		{"hexadecimal", "generation", "0x1", "positive"},
		{"too large", "generation", "18446744073709551616", "positive"},
		{"odd image", "imageID", "a/b", "imageID"},
		{"long image", "imageID", "123456789012345", "14"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := params.ParsePublishContext(with(good, c.key, c.value))
			wantInvalid(t, err, "publish context", c.key, c.hint)
		})
	}
	_, err := params.ParsePublishContext(nil)
	wantInvalid(t, err, "generation: required")
}

func FuzzParseVolumeContext(f *testing.F) {
	for _, c := range releasedContexts {
		f.Add(c.attributes["mapper"], c.attributes["mapOptions"], c.attributes["fsType"], c.attributes["mkfsOptions"])
	}
	f.Add("", "a=b=c,d", "", "-qm")
	f.Add("", "secret=x", "", "-m uuid=1")
	f.Add("", "0", "", " ")
	f.Fuzz(func(t *testing.T, mapper, mapOptions, fsType, mkfs string) {
		context, err := params.ParseVolumeContext(map[string]string{
			"mapper": mapper, "mapOptions": mapOptions, "fsType": fsType, "mkfsOptions": mkfs})
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want it invalid", err)
			}
			return
		}
		if again, err := params.ParseVolumeContext(context.Map()); err != nil || !reflect.DeepEqual(again, context) {
			t.Errorf("read back: got %+v, %v; want %+v", again, err, context)
		}
		for _, word := range append(context.MapOptions, context.MkfsOptions...) {
			if word == "" || strings.ContainsAny(word, " \t\n\x00") {
				t.Errorf("got the word %q", word)
			}
		}
	})
}

func FuzzParsePublishContext(f *testing.F) {
	for _, c := range releasedPublishContexts {
		f.Add(c.metadata["generation"], c.metadata["imageID"])
	}
	f.Add("007", "")
	f.Fuzz(func(t *testing.T, generation, imageID string) {
		m := map[string]string{"generation": generation, "imageID": imageID}
		context, err := params.ParsePublishContext(m)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v, want it invalid", err)
			}
			return
		}
		if got := context.Map(); !maps.Equal(got, m) || context.Generation == 0 {
			t.Errorf("got %v back, want %v", got, m)
		}
	})
}
