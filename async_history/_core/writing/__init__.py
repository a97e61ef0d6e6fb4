"""From the call to the acknowledgement: submissions, the queue, the writer and its batches."""
