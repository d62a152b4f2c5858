;; What the user of pgloader must write before the rows are accepted; docs/export.md.
(in-package :pgloader.transforms)

(defun json-list-to-array (value)
  (when value
    (concatenate 'string "{" (subseq value 1 (1- (length value))) "}")))

(defun short-id-to-uuid (value)
  (when value
    (if (> (length value) 12) value
        (concatenate 'string "00000000-0000-0000-0000-" value))))
