{{- define "xtdist.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* labels of (dict "root" $ "part" "mlflow") */ -}}
{{- define "xtdist.labels" -}}
{{ include "xtdist.selector" . }}
app.kubernetes.io/part-of: xtdist
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "xtdist.selector" -}}
app.kubernetes.io/name: {{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "xtdist.image" -}}
{{ .root.Values.image.repository }}:{{ .root.Values.image.tag }}-{{ .kind }}
{{- end -}}

{{- /* Pod Security "restricted"; user: whose files these are */ -}}
{{- define "xtdist.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "xtdist.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* what is asked for is what is had: no neighbour takes it away */ -}}
{{- define "xtdist.resources" -}}
requests: {{ toJson . }}
limits: {{ toJson . }}
{{- end -}}

{{- define "xtdist.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "xtdist.s3Endpoint" -}}
{{- if .Values.objectStore.endpoint -}}
{{ .Values.objectStore.endpoint }}
{{- else if .Values.objectStore.inCluster.enabled -}}
http://{{ include "xtdist.name" . }}-s3:7070
{{- end -}}
{{- end -}}

{{- /* how to reach the object store, as environment */ -}}
{{- define "xtdist.s3Environment" -}}
- {name: AWS_DEFAULT_REGION, value: {{ .Values.objectStore.region | quote }}}
{{- with include "xtdist.s3Endpoint" . }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
# Checksums that only Amazon's own store knows: Google's refuses them.
- {name: AWS_REQUEST_CHECKSUM_CALCULATION, value: when_required}
- {name: AWS_RESPONSE_CHECKSUM_VALIDATION, value: when_required}
{{- end }}
{{- with .Values.objectStore.credentialsSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: aws_access_key_id}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: aws_secret_access_key}}
{{- end }}
{{- end -}}

{{- /* mistakes that a schema can't see, said before anything is installed */ -}}
{{- define "xtdist.check" -}}
{{- if and .Values.mlflow.enabled (not .Values.objectStore.bucket) -}}
{{- fail "objectStore.bucket is empty: name the bucket that MLflow keeps artifacts in" -}}
{{- end -}}
{{- if and .Values.mlflow.enabled (not .Values.postgresql.enabled) (not .Values.mlflow.databaseSecret) -}}
{{- fail "mlflow.databaseSecret is empty and postgresql.enabled is false: name the Secret with the database's uri, or enable postgresql" -}}
{{- end -}}
{{- if and .Values.postgresql.enabled .Values.mlflow.databaseSecret -}}
{{- fail "mlflow.databaseSecret and postgresql.enabled are both set: MLflow has one database; set postgresql.enabled=false or leave out the Secret" -}}
{{- end -}}
{{- if and .Values.objectStore.inCluster.enabled (not .Values.objectStore.credentialsSecret) -}}
{{- fail "objectStore.credentialsSecret is empty: the object store in the cluster takes its keys from there" -}}
{{- end -}}
{{- if and .Values.objectStore.inCluster.enabled .Values.objectStore.endpoint -}}
{{- fail "objectStore.endpoint and objectStore.inCluster.enabled are both set: choose one object store" -}}
{{- end -}}
{{- if lt (int .Values.ray.workers.max) (int .Values.ray.workers.min) -}}
{{- fail "ray.workers.max is less than ray.workers.min" -}}
{{- end -}}
{{- end -}}
