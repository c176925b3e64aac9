//go:build tools

// Package tools keeps in go.sum what the laboratory's command needs.
package tools

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
