package chart

//go:generate go run ./cmd/chart generate -top ../..
