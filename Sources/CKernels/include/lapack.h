// LAPACK's Fortran symbols, column-major; Debian's OpenBLAS comes without LAPACKE.

#ifndef CKERNELS_LAPACK_H
#define CKERNELS_LAPACK_H

#pragma clang assume_nonnull begin

/// Singular values and vectors, divide and conquer; lwork = -1 asks for the work size.
int pk_sgesdd(char job, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work, int lwork,
              int *iwork);
/// Singular values and vectors, QR iteration: slower, converges where sgesdd does not.
int pk_sgesvd(char jobu, char jobvt, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work,
              int lwork);
/// QR factors in Householder form.
int pk_sgeqrf(int m, int n, float *a, int lda, float *tau, float *work, int lwork);
/// The first n columns of Q from its Householder form.
int pk_sorgqr(int m, int n, int k, float *a, int lda, const float *tau, float *work, int lwork);

#pragma clang assume_nonnull end

#endif
