#include "lapack.h"

extern void sgesdd_(const char *, const int *, const int *, float *, const int *, float *, float *, const int *, float *, const int *,
                    float *, const int *, int *, int *, unsigned long);
extern void sgesvd_(const char *, const char *, const int *, const int *, float *, const int *, float *, float *, const int *, float *,
                    const int *, float *, const int *, int *, unsigned long, unsigned long);
extern void sgeqrf_(const int *, const int *, float *, const int *, float *, float *, const int *, int *);
extern void sorgqr_(const int *, const int *, const int *, float *, const int *, const float *, float *, const int *, int *);

int pk_sgesdd(char job, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work, int lwork,
              int *iwork) {
  int info = 0;
  sgesdd_(&job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, iwork, &info, 1);
  return info;
}

int pk_sgesvd(char jobu, char jobvt, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work,
              int lwork) {
  int info = 0;
  sgesvd_(&jobu, &jobvt, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, &info, 1, 1);
  return info;
}

int pk_sgeqrf(int m, int n, float *a, int lda, float *tau, float *work, int lwork) {
  int info = 0;
  sgeqrf_(&m, &n, a, &lda, tau, work, &lwork, &info);
  return info;
}

int pk_sorgqr(int m, int n, int k, float *a, int lda, const float *tau, float *work, int lwork) {
  int info = 0;
  sorgqr_(&m, &n, &k, a, &lda, tau, work, &lwork, &info);
  return info;
}

extern void dgesdd_(const char *, const int *, const int *, double *, const int *, double *, double *, const int *, double *, const int *,
                    double *, const int *, int *, int *, unsigned long);
extern void dgeqrf_(const int *, const int *, double *, const int *, double *, double *, const int *, int *);
extern void dorgqr_(const int *, const int *, const int *, double *, const int *, const double *, double *, const int *, int *);
extern void dgemm_(const char *, const char *, const int *, const int *, const int *, const double *, const double *, const int *,
                   const double *, const int *, const double *, double *, const int *, unsigned long, unsigned long);

int pk_dgesdd(char job, int m, int n, double *a, int lda, double *s, double *u, int ldu, double *vt, int ldvt, double *work, int lwork,
              int *iwork) {
  int info = 0;
  dgesdd_(&job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, iwork, &info, 1);
  return info;
}

int pk_dgeqrf(int m, int n, double *a, int lda, double *tau, double *work, int lwork) {
  int info = 0;
  dgeqrf_(&m, &n, a, &lda, tau, work, &lwork, &info);
  return info;
}

int pk_dorgqr(int m, int n, int k, double *a, int lda, const double *tau, double *work, int lwork) {
  int info = 0;
  dorgqr_(&m, &n, &k, a, &lda, tau, work, &lwork, &info);
  return info;
}

void pk_dgemm(char ta, char tb, int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc) {
  double one = 1, zero = 0;
  dgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc, 1, 1);
}
