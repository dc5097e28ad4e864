{{/* The name of the chart in labels. */}}
{{- define "rbd-csi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The beginning of all object names: short enough for what follows it. */}}
{{- define "rbd-csi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "rbd-csi.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What cluster-wide objects are named after: two namespaces may have releases of one name. */}}
{{- define "rbd-csi.clusterwide" -}}
{{- $full := include "rbd-csi.fullname" . }}
{{- if eq $full .Release.Namespace }}{{ $full }}{{ else }}{{ printf "%s-%s" .Release.Namespace $full | trunc 100 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/*
Labels that pods are selected by. They never change, and are all that the chart itself puts into a pod's
template: whatever changed there with each version would restart the pods.
Called with (list . COMPONENT).
*/}}
{{- define "rbd-csi.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "rbd-csi.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of objects. Called with (list . COMPONENT). */}}
{{- define "rbd-csi.labels" -}}
{{- $root := index . 0 -}}
{{ include "rbd-csi.selector" . }}
app.kubernetes.io/part-of: rbd-csi
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The driver's image. */}}
{{- define "rbd-csi.image" -}}
{{- include "rbd-csi.imageOf" (list . .Values.image) }}
{{- end }}

{{/* The workers' image: the driver's, but for what is said of it. A tag of its own counts more than the driver's digest. */}}
{{- define "rbd-csi.workersImage" -}}
{{- $own := .Values.workers.image -}}
{{- $repository := $own.repository | default .Values.image.repository -}}
{{- $tag := $own.tag | default .Values.image.tag -}}
{{- $digest := $own.digest | default (ternary "" .Values.image.digest (not (empty $own.tag))) -}}
{{- include "rbd-csi.imageOf" (list . (dict "repository" $repository "tag" $tag "digest" $digest)) }}
{{- end }}

{{- define "rbd-csi.imageOf" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The plug-in's directory on the hosts, where the kubelet expects its socket. */}}
{{- define "rbd-csi.pluginDirectory" -}}
{{ trimSuffix "/" .Values.kubeletRoot }}/plugins/{{ .Values.driverName }}
{{- end }}

{{/* The first of the StorageClasses, or what is to be tested instead. */}}
{{- define "rbd-csi.testClass" -}}
{{- if .Values.test.storageClass -}}
{{ .Values.test.storageClass }}
{{- else if .Values.storageClasses -}}
{{ (first .Values.storageClasses).name }}
{{- end }}
{{- end }}
