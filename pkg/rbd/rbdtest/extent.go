package rbdtest

import (
	"cmp"
	"slices"

	"github.com/rbd-csi/rbd-csi/pkg/rbd"
)

// A run is a piece of an image that lies in one piece of a data object.
type run struct {
	number   int64 // the object's
	inObject int64
	rbd.Extent
}

// runs cuts a piece of an image by the data objects that it lies in, as
// Striper::file_to_extents does.
func runs(l rbd.Layout, piece rbd.Extent) []run {
	unit, count := l.StripeUnit, l.StripeCount
	if count == 0 {
		unit, count = l.ObjectBytes, 1
	}
	inRow := l.ObjectBytes / unit
	var cut []run
	for offset, end := piece.Offset, min(piece.Offset+piece.Bytes, l.Bytes); offset < end; {
		block := offset / unit
		row, column := block/count, block%count
		length := min(unit-offset%unit, end-offset)
		cut = append(cut, run{
			number: row/inRow*count + column, inObject: row%inRow*unit + offset%unit,
			Extent: rbd.Extent{Offset: offset, Bytes: length},
		})
		offset += length
	}
	return cut
}

// runsOf returns the pieces of an image that one of its data objects holds, as
// Striper::extent_to_file does.
func runsOf(l rbd.Layout, number int64) []run {
	unit, count := l.StripeUnit, l.StripeCount
	if count == 0 {
		unit, count = l.ObjectBytes, 1
	}
	var held []run
	for in := int64(0); in < l.ObjectBytes; in += unit {
		row := number/count*(l.ObjectBytes/unit) + in/unit
		offset := (row*count + number%count) * unit
		if offset < l.Bytes {
			held = append(held, run{number, in, rbd.Extent{Offset: offset, Bytes: min(unit, l.Bytes-offset)}})
		}
	}
	return held
}

// total adds up the bytes of runs.
func total(runs []run) (bytes int64) {
	for _, r := range runs {
		bytes += r.Bytes
	}
	return bytes
}

// clip returns what of extents lies in a piece.
func clip(extents []rbd.Extent, piece rbd.Extent) []rbd.Extent {
	var inside []rbd.Extent
	for _, one := range extents {
		begin := max(one.Offset, piece.Offset)
		end := min(one.Offset+one.Bytes, piece.Offset+piece.Bytes)
		if begin < end {
			inside = append(inside, rbd.Extent{Offset: begin, Bytes: end - begin, Exists: one.Exists})
		}
	}
	return inside
}

// join puts extents in order and makes one of those that touch and are alike.
func join(extents []rbd.Extent) []rbd.Extent {
	slices.SortFunc(extents, func(a, b rbd.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	var joined []rbd.Extent
	for _, one := range extents {
		if last := len(joined) - 1; last >= 0 && joined[last].Exists == one.Exists && one.Offset <= joined[last].Offset+joined[last].Bytes {
			joined[last].Bytes = max(joined[last].Bytes, one.Offset+one.Bytes-joined[last].Offset)
			continue
		}
		joined = append(joined, one)
	}
	return joined
}
