{{/* Whether the snapshotter runs: "true" or nothing. */}}
{{- define "rbd-csi.snapshots" -}}
{{- $enabled := toString .Values.snapshots.enabled -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1")) -}}
true
{{- end }}
{{- end }}

{{/* What is missing for what needs snapshots. Called with (list . WHAT), and fails unless there are snapshots. */}}
{{- define "rbd-csi.needSnapshots" -}}
{{- $root := index . 0 -}}
{{- if not (include "rbd-csi.snapshots" $root) }}
{{- if eq (toString $root.Values.snapshots.enabled) "auto" }}
{{- fail (printf "%s: the cluster has no snapshot.storage.k8s.io/v1; install the CRDs and the snapshot-controller of https://github.com/kubernetes-csi/external-snapshotter first, or, where Helm is not asked by a cluster (helm template), say snapshots.enabled=true" (index . 1)) }}
{{- end }}
{{- fail (printf "%s: it needs snapshots.enabled=true or auto" (index . 1)) }}
{{- end }}
{{- end }}

{{/* The classes of snapshots or of group snapshots. Called with a dict: root, api, kind, annotation, classes. */}}
{{- define "rbd-csi.snapshotClasses" -}}
{{- $of := . }}
{{- range $class := .classes }}
---
apiVersion: {{ $of.api }}
kind: {{ $of.kind }}
metadata:
  name: {{ $class.name }}
  labels:
    {{- include "rbd-csi.labels" (list $of.root (lower $of.kind)) | nindent 4 }}
  {{- if or $class.default $class.annotations }}
  annotations:
    {{- if $class.default }}
    {{ $of.annotation }}: "true"
    {{- end }}
    {{- with $class.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
driver: {{ $of.root.Values.driverName }}
deletionPolicy: {{ $class.deletionPolicy | default "Delete" }}
{{- with $class.parameters }}
parameters:
  {{- range $key, $value := . }}
  {{ $key }}: {{ $value | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
