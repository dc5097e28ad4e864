{{/* The Secret of a cluster. Called with (list . CLUSTER). */}}
{{- define "rbd-csi.clusterSecret" -}}
{{- $cluster := index . 1 -}}
{{- $cluster.secretName | default (printf "%s-cluster-%s" (include "rbd-csi.fullname" (index . 0)) $cluster.name) }}
{{- end }}

{{/*
The directory of clusters as one volume, with a directory for each cluster. Nothing is in it that the driver does not
read, and the kubelet renews it when a Secret changes, without a restart. Called with (list . ROLE MODE), where ROLE is
"controller" or "node": Rook has a Ceph user for each.
*/}}
{{- define "rbd-csi.clustersVolume" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- if $root.Values.clusters -}}
- name: clusters
  projected:
    defaultMode: {{ index . 2 }}
    sources:
      {{- range $cluster := $root.Values.clusters }}
      {{- if hasKey $cluster "rook" }}
      {{- $rook := $cluster.rook | default dict }}
      - configMap:
          name: {{ $rook.monEndpoints | default "rook-ceph-mon-endpoints" }}
          items:
            - key: data
              path: {{ $cluster.name }}/mon-endpoints
      - secret:
          {{- if eq $role "controller" }}
          name: {{ $rook.provisionerSecret | default "rook-csi-rbd-provisioner" }}
          {{- else }}
          name: {{ $rook.nodeSecret | default "rook-csi-rbd-node" }}
          {{- end }}
          items:
            - key: userID
              path: {{ $cluster.name }}/userID
            - key: userKey
              path: {{ $cluster.name }}/userKey
      {{- with $rook.cephConfConfigMap }}
      - configMap:
          name: {{ . }}
          items:
            - key: ceph.conf
              path: {{ $cluster.name }}/ceph.conf
      {{- end }}
      {{- else }}
      - secret:
          name: {{ include "rbd-csi.clusterSecret" (list $root $cluster) }}
          items:
            - key: ceph.conf
              path: {{ $cluster.name }}/ceph.conf
            - key: keyring
              path: {{ $cluster.name }}/keyring
      {{- end }}
      {{- end }}
{{- end }}
{{- end }}

{{- define "rbd-csi.clustersMount" -}}
{{- if .Values.clusters -}}
- name: clusters
  mountPath: /etc/rbd-csi/clusters
  readOnly: true
{{- end }}
{{- end }}
